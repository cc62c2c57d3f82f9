import math
from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import bisect

from allotment.errors import InvalidInputError
from allotment.learning.record import TokenRecord
from allotment.methods.objectives.jackpot import (
    Jackpot,
    kl_divergence,
    normaliser,
    obrs_acceptance,
    obrs_distribution,
    solve_lambda,
    top_k_normaliser,
)

INFINITE = math.inf
UNTRUNCATED = {"c1": INFINITE, "c2": INFINITE}
P, Q = (torch.tensor(x, dtype=torch.float64).log() for x in ((0.5, 0.3, 0.2), (0.2, 0.3, 0.5)))


def pairs(seed, n=2000, vocabulary=6, spread=1.5):
    """[n, V] log-probabilities of targets and proposals."""
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, n, vocabulary, generator=random, dtype=torch.float64) * spread
    return logits.log_softmax(-1)


def drawn_record(log_p_CV, log_q_CV, n, seed=0, **changes):
    """``n`` one-token rollouts of q in each of C contexts; p is the current and the old policy."""
    random = torch.Generator().manual_seed(seed)
    log_p_NV, log_q_NV = (x.repeat_interleave(n, 0) for x in (log_p_CV, log_q_CV))
    tokens_N1 = torch.multinomial(log_q_CV.exp(), n, replacement=True, generator=random).flatten()[:, None]
    record = TokenRecord(
        log_probs_NT=log_p_NV.gather(1, tokens_N1),
        old_log_probs_NT=log_p_NV.gather(1, tokens_N1),
        advantages_N=torch.ones(len(tokens_N1), dtype=torch.float64),
        mask_NT=torch.ones(len(tokens_N1), 1, dtype=torch.bool),
        group_ids_N=torch.arange(len(log_p_CV)).repeat_interleave(n),
        rollout_log_probs_NT=log_q_NV.gather(1, tokens_N1),
        distribution_NTV=log_p_NV[:, None],
        rollout_distribution_NTV=log_q_NV[:, None],
        tokens_NT=tokens_N1,
        uniforms_NT=torch.rand(tokens_N1.shape, generator=random, dtype=torch.float64),
    )
    return replace(record, **changes)


@pytest.mark.parametrize(
    ("lam", "z", "kl", "thinned"),
    [
        (0.5, 0.9, 0.21416, None),
        (1.0, 0.7, 0.10147, (0.2857, 0.4286, 0.2857)),
        (2.0, 0.45, 0.00621, None),
        (2.5, 0.4, 0.0, (0.5, 0.3, 0.2)),
        (3.0, 1 / 3, 0.0, (0.5, 0.3, 0.2)),
    ],
)
def test_fixtures_of_the_sheet(lam, z, kl, thinned):
    assert kl_divergence(P, Q).item() == pytest.approx(0.27489, abs=5e-6)
    assert normaliser(P, Q, lam).item() == pytest.approx(z, abs=1e-12)
    after = obrs_distribution(P, Q, lam)
    assert kl_divergence(P, after).item() == pytest.approx(kl, abs=5e-6)
    if thinned:
        assert after.exp().tolist() == pytest.approx(thinned, abs=5e-5)


@pytest.mark.parametrize("lam", [0.01, 0.3, 0.9, 1.0, 1.7, 10.0, 300.0])
def test_acceptance_normaliser_and_distribution_are_one_rule(lam):
    log_p, log_q = pairs(0)
    kept = log_q.exp() * obrs_acceptance(log_p - log_q, lam)
    torch.testing.assert_close(kept.sum(-1), normaliser(log_p, log_q, lam))
    torch.testing.assert_close(kept / kept.sum(-1, keepdim=True), obrs_distribution(log_p, log_q, lam).exp())
    weight = normaliser(log_p, log_q, lam)[:, None] * (log_p - log_q).exp().clamp(min=lam)  # what repairs the rest
    torch.testing.assert_close((log_p - obrs_distribution(log_p, log_q, lam)).exp(), weight)


@pytest.mark.parametrize("lam", [0.05, 0.5, 1.0, 2.0, 8.0])
def test_what_is_left_is_nearer_to_the_target(lam):
    log_p, log_q = pairs(1)
    before, after = kl_divergence(log_p, log_q), kl_divergence(log_p, obrs_distribution(log_p, log_q, lam))
    assert (after <= before + 1e-12).all()
    keeps_all = lam <= (log_p - log_q).exp().amin(-1)
    torch.testing.assert_close(after[keeps_all], before[keeps_all])
    assert (after < before - 1e-9)[~keeps_all].all()


def test_limits_of_lambda():
    log_p, log_q = pairs(2)
    highest = (log_p - log_q).exp().amax(-1, keepdim=True)
    torch.testing.assert_close(obrs_distribution(log_p, log_q, highest), log_p)
    torch.testing.assert_close(normaliser(log_p, log_q, highest), 1 / highest[:, 0])
    torch.testing.assert_close(obrs_distribution(log_p, log_q, 0), log_q)
    assert obrs_acceptance(log_p - log_q, 0).min() == 1
    total_variation = (log_p.exp() - log_q.exp()).abs().sum(-1) / 2
    torch.testing.assert_close(normaliser(log_p, log_q, 1), 1 - total_variation)


def test_larger_lambda_rejects_more_and_comes_nearer():
    log_p, log_q = pairs(3)
    steps = [(normaliser(log_p, log_q, x), kl_divergence(log_p, obrs_distribution(log_p, log_q, x))) for x in LAMBDAS]
    for (z, kl), (next_z, next_kl) in pairwise(steps):
        assert (next_z <= z + 1e-12).all()
        assert (next_kl <= kl + 1e-12).all()


LAMBDAS = (0.01, 0.1, 0.3, 0.7, 1.0, 1.5, 3.0, 10.0, 100.0)


@pytest.mark.parametrize("seed", range(5))
def test_no_acceptance_rule_of_equal_rate_is_nearer(seed):
    """Against any other vectors of acceptance probabilities: near the optimum, far from it, and 0 or 1."""
    log_p, log_q = pairs(10 + seed, n=40)
    q, lam = log_q.exp(), 0.2 + 0.5 * seed
    z, best = normaliser(log_p, log_q, lam), kl_divergence(log_p, obrs_distribution(log_p, log_q, lam))
    optimum = obrs_acceptance(log_p - log_q, lam)
    random = torch.Generator().manual_seed(seed)
    tried = 0
    for scale in (0.01, 0.1, 0.5, 2.0):
        noise = torch.randn(500, *optimum.shape, generator=random, dtype=torch.float64)
        other = (optimum + scale * noise).clamp(1e-6, 1)
        for _ in range(200):  # scaled to the same rate, at most 1
            other = (other * (z / (q * other).sum(-1))[..., None]).clamp(max=1)
        is_equal = ((q * other).sum(-1) - z).abs() < 1e-13
        kl = kl_divergence(log_p, (q * other).log().log_softmax(-1))
        assert (kl >= best - 1e-11)[is_equal].all()
        tried += int(is_equal.sum())
    assert tried > 40_000


@given(st.integers(0, 10_000), st.floats(0.02, 1.0))
def test_lambda_hits_the_rate(seed, rate):
    log_p, log_q = pairs(seed, n=1)
    lam = solve_lambda(log_p[0] - log_q[0], rate, log_q[0].exp())
    assert normaliser(log_p[0], log_q[0], lam).item() == pytest.approx(rate, abs=1e-9)


def test_lambda_is_what_bisection_finds_and_of_a_rate_of_one_the_least_ratio():
    log_ratios = torch.randn(997, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2

    def excess(log_lambda, rate):
        return obrs_acceptance(log_ratios, math.exp(log_lambda)).mean().item() - rate

    for rate in (0.2, 0.7, 0.95, 0.999):
        found = bisect(partial(excess, rate=rate), -20, 20, xtol=1e-12)
        assert solve_lambda(log_ratios, rate).log().item() == pytest.approx(found, abs=1e-9)
    assert solve_lambda(log_ratios, 1.0).item() == pytest.approx(log_ratios.min().exp().item())
    assert solve_lambda(log_ratios.new_zeros(0), 0.9) == 1
    with_impossible = torch.cat([log_ratios, log_ratios.new_full((3,), -INFINITE)])
    lam = solve_lambda(with_impossible, 0.9)
    assert obrs_acceptance(with_impossible, lam).mean().item() == pytest.approx(0.9)
    assert obrs_acceptance(with_impossible, lam)[-3:].sum() == 0
    assert solve_lambda(with_impossible[-3:], 0.9) == 1  # nothing can be kept


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0, 2.5])
def test_the_factor_has_the_expectation_of_the_target_exactly(lam):
    """Sum over tokens of q a f: p f under all tokens, Z p f under the paper's weight; every context, every lambda."""
    log_p, log_q = pairs(4)
    f = torch.randn(log_p.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kept = log_q.exp() * obrs_acceptance(log_p - log_q, lam)
    weight, z = (log_p - log_q).exp().clamp(min=lam), normaliser(log_p, log_q, lam)
    wanted = (log_p.exp() * f).sum(-1)
    torch.testing.assert_close((kept * weight * f).sum(-1), wanted)
    torch.testing.assert_close((kept * z[:, None] * weight * f).sum(-1), z * wanted)
    torch.testing.assert_close((kept * z[:, None] * weight * f).sum(-1) / kept.sum(-1), wanted)  # of accepted tokens


@pytest.mark.parametrize("settings", [{"rate": 0.95}, {"rate": 0.6}, {"lam": 0}, {"lam": 2.0}, {"target": "old"}])
def test_means_over_all_tokens_are_means_under_the_target(settings):
    """The gate itself, in three contexts: the share of each token, weighed, within 4 standard errors of p."""
    log_p, log_q = pairs(5, n=3)
    record = drawn_record(log_p, log_q, n=20_000)
    factors = Jackpot(**settings, **UNTRUNCATED).factors(record)
    for context in range(3):
        rows = record.group_ids_N == context
        is_token_NV = torch.nn.functional.one_hot(record.tokens_NT[rows, 0], 6)
        weighed_NV = factors.values_NT[rows] * is_token_NV
        error_V = weighed_NV.std(0) / rows.sum().sqrt()
        assert ((weighed_NV.mean(0) - log_p[context].exp()).abs() < 4 * error_V).all()
    assert factors.metrics["mean_factor"].item() == pytest.approx(1, abs=0.05)
    assert factors.metrics["truncated"] == 0


def test_the_average_over_accepted_tokens_counts_contexts_by_their_acceptance():
    log_p, log_q = pairs(25, n=2)
    lam = 1.5
    z = normaliser(log_p, log_q, lam)
    assert z.max() > 1.2 * z.min()
    record = drawn_record(log_p, log_q, n=40_000)
    gate = Jackpot(lam=lam, normaliser="exact", average="accepted", **UNTRUNCATED)
    factors_NT = gate.factors(record).values_NT
    f_N = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0, 1.0], dtype=torch.float64)[record.tokens_NT[:, 0]]
    values_N = factors_NT[:, 0] * f_N
    of_p = (log_p.exp() * torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0, 1.0], dtype=torch.float64)).sum(-1)
    error = values_N.std() / len(values_N) ** 0.5
    assert abs(values_N.mean() - (z * of_p).sum() / z.sum()) < 4 * error
    assert abs(values_N.mean() - of_p.mean()) > 4 * error  # not the mean over contexts
    one = drawn_record(log_p[:1], log_q[:1], n=40_000)
    values_N = gate.factors(one).values_NT[:, 0] * f_N[:40_000]
    assert abs(values_N.mean() - of_p[0]) < 4 * values_N.std() / 200
    accepted_NT = one.uniforms_NT < obrs_acceptance(one.log_probs_NT - one.rollout_log_probs_NT, lam)
    weight_NT = z[0] * (one.log_probs_NT - one.rollout_log_probs_NT).exp().clamp(min=lam)
    of_accepted = (weight_NT * f_N[:40_000, None])[accepted_NT].mean()
    torch.testing.assert_close(values_N.mean(), of_accepted)  # the paper's average, literally


def test_the_policy_gradient_of_a_bandit_from_the_rollouts_of_another_policy():
    """Four contexts, softmax logits: gated, it is the on-policy gradient within 4 standard errors; raw, it is not."""
    random = torch.Generator().manual_seed(0)
    rewards_CV = torch.rand(4, 6, generator=random, dtype=torch.float64)
    log_p, log_q = pairs(7, n=4)
    logits = log_p.clone().requires_grad_()
    exact = torch.autograd.grad((logits.softmax(-1) * rewards_CV).sum(), logits)[0]
    record = drawn_record(log_p, log_q, n=30_000)
    raw_NV = torch.nn.functional.one_hot(record.tokens_NT[:, 0], 6) - log_p.exp()[record.group_ids_N]
    raw_NV = raw_NV * rewards_CV[record.group_ids_N, record.tokens_NT[:, 0]][:, None]
    for settings, is_right in (({}, True), ({"rate": 0.7}, True), ({"lam": 0}, True), (None, False)):
        factors_NT = 1 if settings is None else Jackpot(**settings, **UNTRUNCATED).factors(record).values_NT
        groups = (raw_NV * factors_NT).view(4, 30_000, 6)
        z_CV = (groups.mean(1) - exact) / (groups.std(1) / 30_000**0.5)
        assert (z_CV.abs() < 4).all() == is_right


def test_equal_policies_and_lambda_up_to_one_leave_everything_alone():
    log_p, _ = pairs(8, n=50)
    record = drawn_record(log_p, log_p, n=10)
    for settings in ({"lam": 1.0}, {"lam": 0.3}, {"lam": 0.0}, {"rate": 1.0}, {"lam": 1.0, "normaliser": "exact"}):
        for more in ({}, {"average": "accepted"} if "normaliser" in settings else {}):
            factors = Jackpot(**settings, **more).factors(record)
            torch.testing.assert_close(factors.values_NT, torch.ones_like(factors.values_NT))
            assert factors.metrics["rejected"] == 0


@pytest.mark.parametrize("rate", [0.3, 0.8, 0.95, 1.0])
def test_the_rate_is_hit(rate):
    log_p, log_q = pairs(9, n=100)
    metrics = Jackpot(rate=rate, normaliser="exact").factors(drawn_record(log_p, log_q, n=400)).metrics
    assert metrics["acceptance"].item() == pytest.approx(rate, abs=1e-9)
    assert 1 - metrics["rejected"].item() == pytest.approx(rate, abs=0.01)
    expected = normaliser(log_p, log_q, metrics["lambda"]).mean().item()  # of all that might have been drawn
    assert expected == pytest.approx(rate, abs=0.01)
    assert metrics["kl_after"] <= metrics["kl_before"]
    if rate < 0.9:
        assert metrics["kl_after"] < 0.8 * metrics["kl_before"]


def test_truncated_importance_sampling_is_lambda_zero():
    log_p, log_q = pairs(10, n=100, spread=2.0)
    record = drawn_record(log_p, log_q, n=20)
    ratio_NT = (record.log_probs_NT - record.rollout_log_probs_NT).exp()
    for c1 in (0.5, 2.0, INFINITE):
        factors = Jackpot(lam=0, c1=c1).factors(record)
        torch.testing.assert_close(factors.values_NT, ratio_NT.clamp(max=c1))
        assert factors.metrics["truncated"].item() == pytest.approx((ratio_NT > c1).double().mean().item())


@pytest.mark.parametrize("lam", [0.2, 1.0, 2.0, 5.0])
def test_over_its_masks_the_factor_has_the_mean_of_truncated_importance_sampling(lam):
    """Up to lambda = c1; above, every weight is c1 and what is kept is the target thinned out."""
    record = drawn_record(*pairs(18, n=20), n=5)
    uniforms = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    masked = [
        Jackpot(lam=lam, c1=2.0)
        .factors(replace(record, uniforms_NT=torch.full((100, 1), u, dtype=torch.float64)))
        .values_NT
        for u in uniforms.tolist()
    ]
    mean_NT = torch.stack(masked).mean(0)
    tis_NT = (record.log_probs_NT - record.rollout_log_probs_NT).exp().clamp(max=2.0)
    is_equal = torch.isclose(mean_NT, tis_NT, atol=2e-3, rtol=0)
    assert is_equal.all() == (lam <= 2.0)


def test_the_target_and_the_second_cap():
    """After an update old and current policy differ: the product of weights leads from the actor to the old one."""
    log_p, log_q = pairs(11, n=100)
    record = drawn_record(log_p, log_q, n=20)
    old_NT = record.old_log_probs_NT + torch.linspace(-1, 1, 2000, dtype=torch.float64)[:, None]
    record = replace(record, old_log_probs_NT=old_NT)
    ratio_NT = (old_NT - record.rollout_log_probs_NT).exp()
    for target in ("old", "current"):
        values_NT = Jackpot(lam=0, target=target, **UNTRUNCATED).factors(record).values_NT
        torch.testing.assert_close(values_NT, ratio_NT)
    shift_NT = (old_NT - record.log_probs_NT).exp()
    weight_NT = (record.log_probs_NT - record.rollout_log_probs_NT).exp()
    values_NT = Jackpot(lam=0, c1=3.0, c2=1.5).factors(record).values_NT
    torch.testing.assert_close(values_NT, weight_NT.clamp(max=3.0) * shift_NT.clamp(max=1.5))


@pytest.mark.parametrize("k", [1, 3, 8, 30])
def test_the_normaliser_of_the_top_k_is_a_lower_bound(k):
    log_p, log_q = pairs(12, vocabulary=30, spread=2.0)
    for lam in (0.1, 1.0, 3.0):
        exact, part = normaliser(log_p, log_q, lam), top_k_normaliser(log_p, log_q, lam, k)
        assert (part <= exact + 1e-12).all()
        assert (part > 0).all()
        if k == 30:
            torch.testing.assert_close(part, exact)
        elif k == 8:
            assert (part / exact).mean() > 0.8
    logged_q = torch.where(log_q >= log_q.topk(k, -1).values[:, -1:], log_q, -INFINITE)  # what an engine may log
    assert (top_k_normaliser(log_p, logged_q, 1.0, k) <= top_k_normaliser(log_p, log_q, 1.0, k) + 1e-12).all()


@pytest.mark.parametrize("k", [2, 5, 30])
def test_the_scale_of_the_estimated_normaliser_makes_its_mean_the_accepted_share(k):
    log_p, log_q = pairs(13, n=300, vocabulary=30, spread=2.0)
    record = drawn_record(log_p, log_q, n=50)
    gate = Jackpot(lam=1.0, normaliser="top_k", top_k=k, average="accepted", **UNTRUNCATED)
    estimated, exact = gate.factors(record), replace(gate, normaliser="exact").factors(record)
    scale = estimated.metrics["normaliser_scale"].item()
    if k == 30:
        assert scale == pytest.approx(1, abs=0.02)
        torch.testing.assert_close(estimated.values_NT / scale, exact.values_NT)
    else:
        assert scale > 1
        assert estimated.metrics["mean_factor"].item() == pytest.approx(exact.metrics["mean_factor"].item(), abs=0.1)


def test_the_same_random_numbers_give_the_same_mask():
    log_p, log_q = pairs(14, n=100)
    record = drawn_record(log_p, log_q, n=20)
    first, again = (Jackpot(rate=0.8).factors(record).values_NT for _ in range(2))
    assert torch.equal(first, again)
    other = replace(record, uniforms_NT=torch.rand(2000, 1, generator=torch.Generator().manual_seed(99)))
    assert not torch.equal(first == 0, Jackpot(rate=0.8).factors(other).values_NT == 0)
    stricter = Jackpot(rate=0.6).factors(record).values_NT
    assert (stricter[first == 0] == 0).all()  # more is rejected, never less


@pytest.mark.parametrize("normaliser_name", [None, "exact", "top_k"])
def test_padding_may_be_anything_and_no_token_may_be_left(normaliser_name):
    log_p, log_q = pairs(15, n=3)
    record = drawn_record(log_p, log_q, n=2)
    mask_NT = torch.tensor([1, 0, 1, 0, 1, 1])[:, None].bool()
    spoilt = record.rollout_log_probs_NT.clone()
    spoilt[1], spoilt[3] = math.nan, INFINITE
    gate = Jackpot(lam=1.0, normaliser=normaliser_name)
    factors = gate.factors(replace(record, mask_NT=mask_NT, rollout_log_probs_NT=spoilt))
    assert factors.values_NT.isfinite().all()
    assert torch.equal(factors.values_NT, torch.where(mask_NT, gate.factors(record).values_NT, 0.0))
    for settings in ({"rate": 0.5}, {"lam": 1.0}, {"lam": 1e9}):  # no tokens; all are rejected
        mask_NT = torch.full_like(mask_NT, "lam" in settings and settings["lam"] > 1)
        nothing = Jackpot(**settings, normaliser=normaliser_name).factors(replace(record, mask_NT=mask_NT))
        assert nothing.values_NT.abs().sum() == 0
        assert all(value.isfinite() and value.ndim == 0 for value in nothing.metrics.values())


def test_all_rejected_is_no_division_by_zero_in_the_average_over_accepted():
    record = drawn_record(*pairs(16, n=3), n=2)
    factors = Jackpot(lam=1e9, normaliser="exact", average="accepted").factors(record)
    assert factors.values_NT.abs().sum() == 0
    assert factors.metrics["rejected"] == 1


@given(st.floats(-60, 0), st.floats(-60, 0), st.sampled_from([0.0, 1e-3, 1.0, 50.0, None]))
def test_extreme_probabilities_stay_finite(log_p, log_q, lam):
    for dtype in (torch.float32, torch.float64):
        one = torch.ones(1, 1, dtype=dtype)
        record = TokenRecord(
            log_p * one, log_p * one, one[0], one.bool(), torch.zeros(1, dtype=torch.int64), log_q * one
        )
        factors = Jackpot(lam=lam).factors(replace(record, uniforms_NT=0.5 * one))
        assert factors.values_NT.isfinite().all()
        assert 0 <= factors.values_NT.item() <= 2


def test_bad_input():
    record = drawn_record(*pairs(17, n=2), n=2)
    for field, message in (
        ("rollout_log_probs_NT", "rollout engine"),
        ("uniforms_NT", "its seed and step"),
        ("distribution_NTV", "top k"),
        ("rollout_distribution_NTV", "top k"),
    ):
        with pytest.raises(InvalidInputError, match=rf"{field}[\s\S]*{message}"):
            Jackpot(normaliser="exact").factors(replace(record, **{field: None}))
