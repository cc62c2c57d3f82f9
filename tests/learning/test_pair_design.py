import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import eigh

from allotment.errors import ConfigError, InvalidInputError
from allotment.learning import rloo_advantages, rollout_weights
from allotment.learning.advantages import dr_grpo_advantages
from allotment.learning.record import TokenRecord
from allotment.methods.objectives.optimal_design import leverages
from allotment.methods.objectives.pairs import (
    MOST_CANDIDATES,
    TOLERANCE,
    coverage_metrics,
    design_shares,
    mean_hidden,
)
from allotment.methods.objectives.preference import Preference

IDS = torch.tensor([4, 4, 4, 4, 7, 7, 7, 1])


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def features(ids=IDS, width=3, seed=0):
    return torch.randn(len(ids), width, generator=rng(seed), dtype=torch.float64)


def pairs_of(ids):
    return [(i, j) for i, j in itertools.combinations(range(len(ids)), 2) if ids[i] == ids[j]]


def even_shares(ids):
    sizes = {int(q): int((ids == q).sum()) for q in ids}
    shares = torch.zeros(len(ids), len(ids), dtype=torch.float64)
    for i, j in pairs_of(ids):
        n = sizes[int(ids[i])]
        shares[i, j] = shares[j, i] = 2 / (n * (n - 1))
    return shares


def test_mean_hidden_is_over_the_tokens_of_the_rollout():
    hidden = torch.randn(3, 4, 2, generator=rng())
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]], dtype=torch.bool)
    hidden[0, 2:] = torch.nan
    expected = torch.stack([hidden[0, :2].mean(0), hidden[1].mean(0), torch.zeros(2)])
    torch.testing.assert_close(mean_hidden(hidden, mask), expected)


@given(st.integers(0, 30), st.floats(0, 1))
def test_the_mixture_sums_to_the_number_of_prompts_that_have_a_pair(seed, share):
    scores = torch.randn(len(IDS), generator=rng(seed), dtype=torch.float64)
    shares = design_shares(IDS, features(seed=seed), scores, share)
    torch.testing.assert_close(shares, shares.T)
    assert shares.sum().item() / 2 == pytest.approx(2)  # two prompts have pairs, the third has one rollout
    own = IDS[:, None] == IDS[None, :]
    assert shares[~own].abs().max() == 0
    assert (shares >= (1 - share) * even_shares(IDS) - 1e-12).all()


def test_without_a_design_the_shares_are_even_and_alone_it_is_optimal():
    scores = torch.randn(len(IDS), generator=rng(1), dtype=torch.float64)
    torch.testing.assert_close(design_shares(IDS, features(), scores, 0.0), even_shares(IDS))
    shares = design_shares(IDS, features(), scores, 1.0)
    rows = pairs_of(IDS)
    differences = torch.stack([features()[i] - features()[j] for i, j in rows])
    margins = torch.stack([scores[i] - scores[j] for i, j in rows])
    slopes = torch.sigmoid(margins) * torch.sigmoid(-margins)
    weights = np.array([shares[i, j].item() for i, j in rows]) / 2
    found = leverages(slopes.sqrt()[:, None].numpy() * differences.numpy(), weights)
    assert 3 <= found.max() <= 3 * (1 + TOLERANCE)
    even = leverages(slopes.sqrt()[:, None].numpy() * differences.numpy(), np.full(len(rows), 1 / len(rows)))
    assert even.max() > 1.2 * found.max()


def test_a_pair_that_is_certain_gets_less():
    flat, sure = torch.zeros(len(IDS)), torch.zeros(len(IDS))
    sure[0] = 9.0
    first, second = (design_shares(IDS, features(width=2), scores, 1.0) for scores in (flat, sure))
    assert 10 * second[0].sum() < first[0].sum()


def test_candidates_are_capped_and_what_is_left_out_keeps_its_even_share():
    ids = torch.zeros(40, dtype=torch.int64)  # 780 pairs
    shares = design_shares(ids, features(ids), torch.zeros(40), 0.5)
    rest = shares[np.triu_indices(40, 1)]
    assert rest.sum() == pytest.approx(1)
    assert rest.min().item() == pytest.approx(0.5 / 780)
    left = int((rest <= 0.5 / 780 * (1 + 1e-12)).sum())
    assert 780 - MOST_CANDIDATES <= left < 780


@pytest.mark.parametrize("features_NH", [torch.zeros(8, 3), torch.ones(8, 3)])
def test_pairs_that_cannot_be_told_apart_stay_even(features_NH):
    torch.testing.assert_close(design_shares(IDS, features_NH, torch.zeros(8), 1.0), even_shares(IDS))


def test_single_rollouts_have_no_pair():
    assert design_shares(torch.arange(3), torch.randn(3, 2), torch.zeros(3), 1.0).abs().sum() == 0


def test_features_that_are_not_finite_are_refused():
    bad = features()
    bad[0, 0] = torch.nan
    with pytest.raises(InvalidInputError, match="not finite"):
        design_shares(IDS, bad, torch.zeros(8), 0.5)


def test_coverage_of_the_policy_that_drew_is_one():
    metrics = coverage_metrics(features(), IDS, torch.full((8,), -0.3), 0.1)
    assert metrics["coverage_number"].item() == pytest.approx(1, abs=1e-9)
    assert metrics["coverage_sample"].item() == pytest.approx(1)


@given(st.integers(0, 30), st.floats(-200, 200))
def test_coverage_by_hand_and_whatever_a_prompts_ratios_have_in_common(seed, shift):
    features_NH, log_weights = features(seed=seed), torch.randn(8, generator=rng(seed), dtype=torch.float64)
    covariances = {"sampler": torch.zeros(3, 3).double(), "current": torch.zeros(3, 3).double()}
    effective = 0.0
    for q in (1, 4, 7):
        own, weights = features_NH[q == IDS], log_weights[q == IDS].softmax(0)
        effective += (1 / weights.square().sum() / len(own)).item() / 3
        for name, w in (("sampler", torch.full_like(weights, 1 / len(own))), ("current", weights)):
            centred = own - w @ own
            covariances[name] += (w[:, None] * centred).T @ centred / 3
    ridge = 0.1 * covariances["sampler"].trace() / 3 * torch.eye(3)
    expected = eigh(covariances["current"] + ridge, covariances["sampler"] + ridge, eigvals_only=True)[-1]
    metrics = coverage_metrics(features_NH, IDS, log_weights + shift * (IDS == 4), 0.1)
    assert metrics["coverage_number"].item() == pytest.approx(expected)
    assert metrics["coverage_sample"].item() == pytest.approx(effective)


def record(rewards, design_needs=True, seed=0):
    reference = -torch.rand(8, 3, generator=rng(seed), dtype=torch.float64)
    log_probs = (reference + 0.5 * torch.randn(8, 3, generator=rng(seed + 1), dtype=torch.float64)).requires_grad_()
    return TokenRecord(
        log_probs_NT=log_probs,
        old_log_probs_NT=log_probs.detach(),
        advantages_N=dr_grpo_advantages(rewards, IDS),
        mask_NT=torch.ones(8, 3, dtype=torch.bool),
        group_ids_N=IDS,
        rollout_log_probs_NT=log_probs.detach() - 0.1,
        reference_log_probs_NT=reference,
        hidden_NTH=torch.randn(8, 3, 4, generator=rng(seed), dtype=torch.float64) if design_needs else None,
    )


REWARDS = torch.tensor([1.0, 0, 0, 1, 1, 1, 0, 1], dtype=torch.float64)


@pytest.mark.parametrize("loss_name", ["dpo", "distillation"])
def test_the_loss_is_the_mixed_mean_over_pairs(loss_name):
    row, loss = record(REWARDS), Preference(beta=0.4, loss_name=loss_name, design=0.7)
    ratio = (row.log_probs_NT - row.reference_log_probs_NT).sum(1).detach()
    shares = design_shares(IDS, row.hidden_NTH.mean(1), 0.4 * ratio, 0.7)
    expected = 0.0
    for i, j in pairs_of(IDS):
        margin, gap = 0.4 * (ratio[i] - ratio[j]), REWARDS[i] - REWARDS[j]
        if loss_name == "distillation":
            expected += shares[i, j] * (margin - gap) ** 2 / 3
        elif gap != 0:
            expected -= shares[i, j] * torch.nn.functional.logsigmoid(margin * gap.sign()) / 3
    token_loss = loss.loss(row)
    weights = rollout_weights(IDS, row.mask_NT, length="sum", dtype=torch.float64)
    assert (weights * token_loss.values_NT).sum().item() == pytest.approx(expected.item())
    assert token_loss.metrics["coverage_number"].item() == pytest.approx(1)


def test_labels_do_not_move_the_design():
    """The gradient of a squared loss is linear in the rewards, with coefficients that are the shares."""

    def gradient(rewards):
        row = record(rewards)
        weights = rollout_weights(IDS, row.mask_NT, length="sum", dtype=torch.float64)
        (weights * Preference(loss_name="distillation", design=1.0).loss(row).values_NT).sum().backward()
        return row.log_probs_NT.grad

    first, second = gradient(REWARDS), gradient(1 - REWARDS)
    assert (first - second).abs().max() > 1e-3
    torch.testing.assert_close((first + second) / 2, gradient(torch.ones(8, dtype=torch.float64)))


def test_one_sided_groups_have_no_gradient_with_a_design():
    row = record(torch.ones(8, dtype=torch.float64))
    Preference(design=1.0).loss(row).values_NT.sum().backward()
    assert row.log_probs_NT.grad.abs().max() == 0


def test_without_a_design_hidden_states_are_for_the_log_alone():
    with_hidden, without = (record(REWARDS, design_needs=given_) for given_ in (True, False))
    first, second = (Preference().loss(row) for row in (with_hidden, without))
    assert torch.equal(first.values_NT, second.values_NT)
    assert set(first.metrics) - set(second.metrics) == {"coverage_number", "coverage_sample"}
    with pytest.raises(InvalidInputError, match="hidden_NTH"):
        Preference(design=0.5).loss(without)


@pytest.mark.parametrize("settings", [{}, {"design": 0.5}, {"loss_name": "distillation"}])
@pytest.mark.parametrize("reward", [torch.nan, torch.inf])
def test_rewards_that_are_not_finite_are_refused(settings, reward):
    row = record(REWARDS)
    row.advantages_N[2] = reward
    with pytest.raises(InvalidInputError, match="rollout 2 is not finite"):
        Preference(**settings).loss(row)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"design": -0.1}, "this design"),
        ({"design": 1.1}, "this design"),
        ({"design": 0.5, "pairs": "extreme"}, "looks at rewards first"),
        ({"ridge": 0}, "this ridge"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ConfigError, match=message):
        Preference(**settings)


def test_small_design_shares_leave_the_gradient_near_that_of_rloo():
    row = record(REWARDS)
    at_reference = TokenRecord(**{**vars(row), "reference_log_probs_NT": row.log_probs_NT.detach()})
    weights = rollout_weights(IDS, row.mask_NT, length="sum", dtype=torch.float64)
    (weights * Preference(beta=0.3, design=1e-9).loss(at_reference).values_NT).sum().backward()
    rloo = -weights * rloo_advantages(REWARDS, IDS)[:, None]
    torch.testing.assert_close(row.log_probs_NT.grad, 0.3 * rloo, atol=1e-8, rtol=0)
