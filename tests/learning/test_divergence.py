import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from allotment.errors import ConfigError, InvalidInputError
from allotment.learning import clipped_surrogate
from allotment.learning.record import TokenRecord
from allotment.methods.objectives.divergence import (
    DELTAS,
    DivergencePPO,
    binary_kl,
    kl_divergence,
    top_k_buckets,
    total_variation,
)

GATES = list(DELTAS)
BINARY = ["binary_tv", "binary_kl", "ratio"]


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def random_record(seed, tokens=400, vocabulary=30, spread=1.0):
    """One rollout a token, so that advantages are of tokens; two policies that differ by ``spread``."""
    random = torch.Generator().manual_seed(seed)
    mu_NTV = torch.randn(tokens, 1, vocabulary, generator=random, dtype=torch.float64) * 2
    pi_NTV = mu_NTV + spread * torch.randn(tokens, 1, vocabulary, generator=random, dtype=torch.float64)
    mu_NTV, pi_NTV = mu_NTV.log_softmax(-1), pi_NTV.log_softmax(-1)
    tokens_NT = torch.multinomial(mu_NTV[:, 0].exp(), 1, generator=random)
    log_mu_NT, log_pi_NT = (x.gather(-1, tokens_NT[..., None])[..., 0] for x in (mu_NTV, pi_NTV))
    return TokenRecord(
        log_probs_NT=log_pi_NT.requires_grad_(),
        old_log_probs_NT=log_mu_NT,
        advantages_N=torch.randn(tokens, generator=random, dtype=torch.float64),
        mask_NT=torch.ones(tokens, 1, dtype=torch.bool),
        group_ids_N=torch.arange(tokens),
        rollout_log_probs_NT=log_mu_NT,
        distribution_NTV=pi_NTV,
        rollout_distribution_NTV=mu_NTV,
        tokens_NT=tokens_NT,
    )


def one_token(mu, pi, advantage=1.0):
    log_pi, log_mu = f64([math.log(pi)]).requires_grad_(), f64([math.log(mu)])
    return TokenRecord(
        log_pi, log_mu, f64(advantage), torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, dtype=torch.int64), log_mu
    )


def gradient(objective, record):
    """[N, T] of the sum of losses, with respect to the log-probability of each token."""
    return torch.autograd.grad(objective.loss(record).values_NT.sum(), record.log_probs_NT)[0]


def is_closed(gate, mu, pi, advantage, **settings):
    return gradient(DivergencePPO(gate=gate, **settings), one_token(mu, pi, advantage)).item() == 0


@pytest.mark.parametrize(
    ("mu", "pi", "ratio", "tv", "kl"),
    [(1e-4, 1e-2, 100, 0.0099, 0.00949), (0.99, 0.80, 0.808, 0.19, 0.1810), (0.5, 0.66, 1.32, 0.16, 0.0540)],
)
def test_divergences_of_the_sheet(mu, pi, ratio, tv, kl):
    record = one_token(mu, pi)
    for gate, expected in (("ratio", abs(ratio - 1)), ("binary_tv", tv), ("binary_kl", kl)):
        got = DivergencePPO(gate=gate).loss(record).metrics["mean_divergence"].item()
        assert got == pytest.approx(expected, rel=2e-3)
        assert got == pytest.approx(
            {
                "ratio": abs(pi / mu - 1),
                "binary_tv": abs(mu - pi),
                "binary_kl": mu * math.log(mu / pi) + (1 - mu) * math.log((1 - mu) / (1 - pi)),
            }[gate],
            abs=1e-12,
        )


@pytest.mark.parametrize(
    ("gate", "mu", "pi", "advantage", "closed"),
    [
        ("ratio", 1e-4, 1e-2, 1, True),  # a rare token: the ratio stops it, the mass hardly moved
        ("binary_tv", 1e-4, 1e-2, 1, False),
        ("binary_kl", 1e-4, 1e-2, 1, False),
        ("ratio", 0.99, 0.80, -1, False),  # a frequent one: the ratio lets it go, a fifth of the mass moved
        ("binary_tv", 0.99, 0.80, -1, True),
        ("binary_kl", 0.99, 0.80, -1, True),
        ("binary_tv", 0.5, 0.36, -1, False),
        ("binary_tv", 0.5, 0.66, 1, True),
        ("binary_kl", 0.5, 0.66, 1, True),
        ("binary_tv", 0.5, 0.66, -1, False),  # the way back
        ("binary_tv", 0.99, 0.80, 1, False),
    ],
)
def test_fixtures_of_the_sheet(gate, mu, pi, advantage, closed):
    assert is_closed(gate, mu, pi, advantage) == closed


@pytest.mark.parametrize("rule", ["add", "replace"])
@pytest.mark.parametrize("k", [1, 5, 20])
def test_coarsening_lowers_the_divergence(k, rule):
    """Binary <= top-K <= whole vocabulary; the drawn token has a bucket of its own under both rules."""
    record = random_record(0, tokens=5000, vocabulary=40)
    mu_NTV, pi_NTV, log_mu_NT = record.rollout_distribution_NTV, record.distribution_NTV, record.rollout_log_probs_NT
    buckets = top_k_buckets(mu_NTV, pi_NTV, record.tokens_NT, log_mu_NT, k, rule)
    for probabilities in buckets:
        torch.testing.assert_close(probabilities.sum(-1), torch.ones_like(log_mu_NT))
    log_pi_NT, slack = record.log_probs_NT.detach(), 1e-12
    tv = (
        (log_mu_NT.exp() - log_pi_NT.exp()).abs(),
        total_variation(*buckets),
        total_variation(mu_NTV.exp(), pi_NTV.exp()),
    )
    kl = binary_kl(log_mu_NT, log_pi_NT), kl_divergence(*buckets), (mu_NTV.exp() * (mu_NTV - pi_NTV)).sum(-1)
    for binary, top, whole in (tv, kl):
        assert (binary <= top + slack).all()
        assert (top <= whole + slack).all()
        assert (binary >= -slack).all()


def test_the_two_rules_differ_only_where_the_drawn_token_is_unlikely():
    mu, pi = f64([0.5, 0.3, 0.15, 0.05]).log(), f64([0.3, 0.4, 0.1, 0.2]).log()
    for token, added, replaced in (
        (0, (0.5, 0.3, 0.0, 0.2), (0.5, 0.3, 0.2)),
        (3, (0.5, 0.3, 0.05, 0.15), (0.5, 0.05, 0.45)),
    ):
        tokens = torch.tensor([[token]])
        given_to = (mu[None], pi[None], tokens, mu[:, [token]], 2)
        assert top_k_buckets(*given_to, "add")[0].flatten().tolist() == pytest.approx(added)
        assert top_k_buckets(*given_to, "replace")[0].flatten().tolist() == pytest.approx(replaced)
    pi_added, pi_replaced = (top_k_buckets(*given_to, rule)[1].flatten().tolist() for rule in ("add", "replace"))
    assert pi_added == pytest.approx((0.3, 0.4, 0.2, 0.1))
    assert pi_replaced == pytest.approx((0.3, 0.2, 0.5))


def test_an_engine_that_logs_only_its_top_k_gives_the_same_gate():
    record = random_record(1, vocabulary=30)
    mu_NTV = record.rollout_distribution_NTV
    logged_NTV = torch.where(mu_NTV >= mu_NTV.topk(20, -1).values[..., -1:], mu_NTV, -math.inf)
    for gate in ("topk_tv", "topk_kl"):
        objective = DivergencePPO(gate=gate, top_k=20)
        whole, partial = (objective.loss(r) for r in (record, replace(record, rollout_distribution_NTV=logged_NTV)))
        assert torch.equal(whole.values_NT, partial.values_NT)
    fewer = DivergencePPO(gate="topk_kl", top_k=25).loss(replace(record, rollout_distribution_NTV=logged_NTV))
    torch.testing.assert_close(fewer.metrics["mean_divergence"], partial.metrics["mean_divergence"])  # 20 and the rest


@pytest.mark.parametrize("gate", GATES)
def test_equal_policies_give_the_policy_gradient(gate):
    record = random_record(2, spread=0.0)
    loss = DivergencePPO(gate=gate, delta=0.0).loss(record)
    expected = -record.advantages_N[:, None]
    torch.testing.assert_close(gradient(DivergencePPO(gate=gate), record), expected, atol=1e-9, rtol=0)
    torch.testing.assert_close(loss.values_NT.detach(), expected, atol=1e-9, rtol=0)
    assert loss.metrics["gate_fraction"] == 0
    assert loss.metrics["mean_divergence"].abs() < 1e-12
    assert loss.metrics["mean_ratio"].item() == pytest.approx(1)


@pytest.mark.parametrize("gate", GATES)
def test_a_gate_never_closes_the_way_back_and_closed_means_no_gradient(gate):
    record = random_record(3, tokens=3000)
    away_NT = record.advantages_N[:, None] * (record.log_probs_NT - record.rollout_log_probs_NT).detach() > 0
    nothing = gradient(DivergencePPO(gate=gate, delta=0.0), record)
    assert torch.equal(nothing == 0, away_NT)  # delta = 0: only moves towards mu survive
    default = DivergencePPO(gate=gate)
    closed_NT = gradient(default, record) == 0
    assert 0.01 < closed_NT.double().mean() < 0.6
    assert not (closed_NT & ~away_NT).any()
    metrics = default.loss(record).metrics
    assert metrics["gate_fraction"].item() == pytest.approx(closed_NT.double().mean().item())
    by_sign = metrics["gate_fraction_positive"] + metrics["gate_fraction_negative"]
    assert by_sign.item() == pytest.approx(metrics["gate_fraction"].item())


def test_the_tv_gate_is_a_signed_test_and_a_ratio_clip_of_width_delta_over_mu():
    record = random_record(4, tokens=5000)
    closed_NT = gradient(DivergencePPO(delta=0.15), record) == 0
    mu_NT, pi_NT = record.rollout_log_probs_NT.exp(), record.log_probs_NT.detach().exp()
    rises_NT = record.advantages_N[:, None] > 0
    assert torch.equal(closed_NT, torch.where(rises_NT, pi_NT - mu_NT > 0.15, mu_NT - pi_NT > 0.15))
    width_NT = 0.15 / mu_NT
    ratio_NT = pi_NT / mu_NT
    assert torch.equal(closed_NT, torch.where(rises_NT, ratio_NT > 1 + width_NT, ratio_NT < 1 - width_NT))


@pytest.mark.parametrize("clip", [0.0, 0.05, 0.2])
def test_the_ratio_gate_has_the_gradient_of_ppo(clip):
    record = random_record(5, tokens=3000)
    arguments = (record.log_probs_NT, record.rollout_log_probs_NT, record.advantages_N, record.mask_NT)
    ppo = clipped_surrogate(*arguments, clip, clip)
    objective = DivergencePPO(gate="ratio", delta=clip, ratio_cap=math.inf)
    expected = torch.autograd.grad(ppo.values_NT.sum(), record.log_probs_NT)[0]
    torch.testing.assert_close(gradient(objective, record), expected, atol=1e-12, rtol=1e-12)
    assert objective.loss(record).metrics["gate_fraction"].item() == pytest.approx(ppo.metrics["clip_fraction"].item())


@pytest.mark.parametrize("gate", GATES)
def test_without_a_threshold_it_is_capped_importance_sampling(gate):
    record = random_record(6, spread=2.0)
    ratio_NT = (record.log_probs_NT.detach() - record.rollout_log_probs_NT).exp()
    for cap in (0.5, 3.0, math.inf):
        objective = DivergencePPO(gate=gate, delta=math.inf, ratio_cap=cap)
        expected = -record.advantages_N[:, None] * ratio_NT.clamp(max=cap)
        torch.testing.assert_close(gradient(objective, record), expected)  # capped, not zero
        torch.testing.assert_close(objective.loss(record).values_NT.detach(), expected)
        capped = (ratio_NT > cap).double().mean().item()
        assert objective.loss(record).metrics["capped_fraction"].item() == pytest.approx(capped)


def test_the_anchor_is_the_rollout_policy_unless_old_is_named():
    record = replace(random_record(7), old_log_probs_NT=random_record(7).log_probs_NT.detach() - 0.01)
    by_old = gradient(DivergencePPO(anchor="old", delta=math.inf), record)
    torch.testing.assert_close(by_old, -record.advantages_N[:, None] * math.exp(0.01))
    without = replace(record, rollout_log_probs_NT=None)
    torch.testing.assert_close(gradient(DivergencePPO(anchor="old", delta=math.inf), without), by_old)
    with pytest.raises(InvalidInputError, match=r"rollout_log_probs_NT[\s\S]*rollout engine"):
        DivergencePPO().loss(without)


@given(st.floats(-60, 0), st.floats(-60, 0), st.sampled_from(BINARY), st.sampled_from([-1.0, 1.0]))
def test_extreme_probabilities_stay_finite(log_mu, log_pi, gate, advantage):
    for dtype in (torch.float32, torch.float64):
        record = TokenRecord(
            torch.tensor([[log_pi]], dtype=dtype, requires_grad=True),
            torch.tensor([[log_mu]], dtype=dtype),
            torch.tensor([advantage], dtype=dtype),
            torch.ones(1, 1, dtype=torch.bool),
            torch.zeros(1, dtype=torch.int64),
            torch.tensor([[log_mu]], dtype=dtype),
        )
        loss = DivergencePPO(gate=gate).loss(record)
        assert loss.values_NT.isfinite().all()
        assert loss.metrics["mean_divergence"] >= -1e-6


def test_near_certain_tokens_in_single_precision_do_not_close_the_kl_gate():
    log_mu, log_pi = torch.tensor([[-1.2e-7]]), torch.tensor([[0.0]])
    assert binary_kl(log_mu, log_pi).abs() < 1e-5
    assert binary_kl(log_pi, log_mu).abs() < 1e-5


@pytest.mark.parametrize("gate", GATES)
def test_padding_may_be_anything_and_an_empty_mask_is_no_loss(gate):
    record = random_record(8, tokens=4)
    mask_NT = torch.tensor([[True], [False], [True], [False]])
    spoilt = record.rollout_log_probs_NT.clone()
    spoilt[1], spoilt[3] = math.nan, math.inf
    padded = replace(record, mask_NT=mask_NT, rollout_log_probs_NT=spoilt)
    loss, whole = (DivergencePPO(gate=gate).loss(r) for r in (padded, record))
    assert torch.equal(loss.values_NT, torch.where(mask_NT, whole.values_NT, 0.0))
    assert gradient(DivergencePPO(gate=gate), padded)[[1, 3]].abs().sum() == 0
    nothing = DivergencePPO(gate=gate).loss(replace(padded, mask_NT=torch.zeros_like(mask_NT)))
    assert nothing.values_NT.abs().sum() == 0
    assert all(value.isfinite() and value.ndim == 0 and not value.requires_grad for value in nothing.metrics.values())


def test_bad_input():
    record = random_record(9, tokens=3)
    with pytest.raises(InvalidInputError, match="advantage"):
        DivergencePPO().loss(replace(record, advantages_N=f64(1, math.nan, 2)))
    with pytest.raises(InvalidInputError, match="distribution_NTV"):
        DivergencePPO(gate="topk_tv").loss(replace(record, distribution_NTV=None))
    with pytest.raises(InvalidInputError, match="both policies"):
        DivergencePPO(gate="topk_tv").loss(replace(record, rollout_distribution_NTV=None))
    for settings in (
        {"gate": "tv"},
        {"anchor": "reference"},
        {"delta": -0.1},
        {"ratio_cap": 0.0},
        {"gate": "topk_kl", "top_k": 0},
        {"gate": "topk_kl", "top_k_rule": "drop"},
        {"gate": "topk_kl", "anchor": "old"},
    ):
        with pytest.raises(ConfigError, match="divergence-ppo"):
            DivergencePPO(**settings)


def test_defaults_are_those_of_the_sheet():
    assert DELTAS == {"binary_tv": 0.15, "topk_tv": 0.15, "binary_kl": 0.05, "topk_kl": 0.05, "ratio": 0.2}
    assert (DivergencePPO().gate, DivergencePPO().anchor, DivergencePPO().ratio_cap) == ("binary_tv", "rollout", 20)
    assert (DivergencePPO().top_k, DivergencePPO().top_k_rule) == (20, "add")
    assert DivergencePPO().needs == ("rollout",)
    assert DivergencePPO(gate="topk_tv").needs == ("rollout", "distributions")
