import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from allotment.errors import ConfigError, InvalidInputError
from allotment.learning import rloo_advantages, rollout_weights
from allotment.learning.advantages import dr_grpo_advantages
from allotment.learning.record import TokenRecord
from allotment.methods.objectives.pairs import preference_pairs
from allotment.methods.objectives.preference import Preference, distillation_losses, dpo_losses, label_confidence

groups_of_scores = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), min_size=1, max_size=4)


def flat(groups):
    ids = [q for q, scores in enumerate(groups) for _ in scores]
    return torch.tensor([float(s) for scores in groups for s in scores]), torch.tensor(ids)


@given(groups_of_scores, st.booleans())
def test_all_pairs_are_those_of_brute_force_and_their_shares_sum_to_one_with_ties(groups, ties):
    scores, ids = flat(groups)
    pairs = preference_pairs(scores, ids, ties=ties)
    expected = set()
    for i, j in itertools.combinations(range(len(ids)), 2):
        if ids[i] == ids[j] and (scores[i] != scores[j] or ties):
            expected.add((i, j) if scores[i] >= scores[j] else (j, i))
    assert set(zip(pairs.chosen_P.tolist(), pairs.rejected_P.tolist(), strict=True)) == expected
    if ties:
        shares = torch.zeros(len(groups), dtype=torch.float64).index_add(0, pairs.group_P, pairs.shares_P)
        assert shares.tolist() == pytest.approx([float(len(g) > 1) for g in groups])
    else:
        assert pairs.without_pair == sum(len(set(g)) == 1 for g in groups)


@given(groups_of_scores)
def test_extreme_pairs_are_the_best_and_the_worst(groups):
    scores, ids = flat(groups)
    pairs = preference_pairs(scores, ids, "extreme")
    assert pairs.group_P.tolist() == [q for q, g in enumerate(groups) if len(set(g)) > 1]
    for chosen, rejected, q in zip(pairs.chosen_P, pairs.rejected_P, pairs.group_P.tolist(), strict=True):
        assert (scores[chosen], scores[rejected]) == (max(groups[q]), min(groups[q]))


@pytest.mark.parametrize("which", ["all", "extreme"])
def test_ties_alone_are_a_pair_only_where_they_are_asked_for(which):
    scores, ids = torch.ones(2), torch.zeros(2, dtype=torch.int64)
    assert len(preference_pairs(scores, ids, which)) == 0
    assert len(preference_pairs(scores, ids, which, ties=True)) == 1


@pytest.mark.parametrize(
    ("scores", "which", "message"),
    [([1.0, float("nan")], "all", "rollout 1 is not finite"), ([1.0], "all", "fit"), ([1.0, 0.0], "some", "no such")],
)
def test_what_cannot_be_compared_is_refused(scores, which, message):
    with pytest.raises(InvalidInputError, match=message):
        preference_pairs(torch.tensor(scores), torch.tensor([0, 0]), which)


margins = torch.linspace(-3, 3, 13, dtype=torch.float64)


def test_full_confidence_is_dpo_and_half_is_even_without_gradient_at_zero():
    torch.testing.assert_close(dpo_losses(margins, 0.5), torch.log1p(torch.exp(-0.5 * margins)))
    half = dpo_losses(margins, 0.5, 0.5)
    torch.testing.assert_close(half, half.flip(0))
    zero = torch.zeros(1, requires_grad=True)
    dpo_losses(zero, 0.5, 0.5).sum().backward()
    assert zero.grad.item() == 0


@pytest.mark.parametrize("confidence", [0.5, 0.7, 0.95])
def test_the_least_loss_is_where_the_model_says_the_confidence(confidence):
    margin = torch.tensor([math.log(confidence / (1 - confidence)) / 0.2], dtype=torch.float64, requires_grad=True)
    dpo_losses(margin, 0.2, confidence).sum().backward()
    assert abs(margin.grad.item()) < 1e-12


def test_swapping_chosen_and_rejected_with_the_confidence_changes_nothing():
    torch.testing.assert_close(dpo_losses(margins, 0.3, 0.8), dpo_losses(-margins, 0.3, 1 - 0.8))


@pytest.mark.parametrize(("gap", "expected"), [(0, 0.5), (0.1, 0.6792), (0.2, 0.8176), (0.4, 0.9526), (-0.3, 0.5)])
def test_confidence_in_labels(gap, expected):
    assert label_confidence(gap, 7.5) == pytest.approx(expected, abs=5e-5)
    assert label_confidence(-1e9, 7.5) == 0.5


def test_distillation_is_zero_at_the_tilted_reference():
    reference = torch.randn(6, dtype=torch.float64).log_softmax(0)
    rewards, beta = torch.randn(6, dtype=torch.float64), 0.3
    policy = (reference + rewards / beta).log_softmax(0)
    ratio = policy - reference
    for i, j in itertools.combinations(range(6), 2):
        loss = distillation_losses(ratio[i : i + 1] - ratio[j], rewards[i : i + 1] - rewards[j], beta)
        assert loss.item() < 1e-20


def record(rewards, ids, tokens=3, at_reference=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    reference = -torch.rand(len(ids), tokens, generator=generator, dtype=torch.float64)
    shift = torch.zeros_like(reference) if at_reference else torch.randn(reference.shape, generator=generator)
    log_probs = (reference + shift).requires_grad_()
    mask = torch.rand(len(ids), tokens, generator=generator) < 0.7
    mask[:, 0] = True
    return TokenRecord(
        log_probs_NT=log_probs,
        old_log_probs_NT=log_probs.detach(),
        advantages_N=dr_grpo_advantages(rewards, ids),
        mask_NT=mask,
        group_ids_N=ids,
        reference_log_probs_NT=reference,
    )


ids = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 3])
rewards = torch.tensor([1.0, 0, 0, 1, 1, 1, 0, 0, 1, 1, 0], dtype=torch.float64)


def summed(loss, row):
    weights = rollout_weights(row.group_ids_N, row.mask_NT, length="sum", dtype=torch.float64)
    return (weights * loss.loss(row).values_NT).sum()


@pytest.mark.parametrize("loss_name", ["dpo", "distillation"])
def test_at_the_reference_the_gradient_is_that_of_rloo(loss_name):
    """DPO: beta times; distillation: 4 beta times, where rewards are 0 and 1."""
    row = record(rewards, ids)
    summed(Preference(beta=0.3, loss_name=loss_name), row).backward()
    weights = rollout_weights(ids, row.mask_NT, length="sum", dtype=torch.float64)
    rloo = -weights * rloo_advantages(rewards, ids)[:, None] * row.mask_NT
    factor = 0.3 if loss_name == "dpo" else 4 * 0.3
    torch.testing.assert_close(row.log_probs_NT.grad, factor * rloo, atol=1e-12, rtol=0)


@pytest.mark.parametrize("settings", [{}, {"loss_name": "distillation"}, {"pairs": "extreme", "alpha": 7.5}])
def test_the_loss_is_the_mean_over_prompts_of_the_mean_over_comparisons(settings):
    row = record(rewards, ids, at_reference=False)
    loss = Preference(beta=0.3, **settings)
    ratio = ((row.log_probs_NT - row.reference_log_probs_NT) * row.mask_NT).sum(1).detach()
    confidence = label_confidence(1.0, 7.5) if "alpha" in settings else 1.0
    total = 0.0
    for q in range(4):
        rows = (ids == q).nonzero().squeeze(1).tolist()
        pairs = list(itertools.combinations(rows, 2))
        if settings.get("pairs") == "extreme":
            best, worst = max(rows, key=lambda i: rewards[i]), min(rows, key=lambda i: rewards[i])
            pairs = [(best, worst)] if rewards[best] > rewards[worst] else []
        for i, j in pairs:
            margin, gap = (ratio[i] - ratio[j])[None], (rewards[i] - rewards[j])[None]
            if "loss_name" in settings:
                value = distillation_losses(margin, gap, 0.3).item()
            else:
                value = 0.0 if gap == 0 else dpo_losses(margin * gap.sign(), 0.3, confidence).item()
            total += value / len(pairs) / 4
    assert summed(loss, row).item() == pytest.approx(total)


def test_one_sided_groups_have_no_gradient_and_are_counted():
    row = record(torch.ones(11, dtype=torch.float64), ids, at_reference=False)
    loss = Preference()
    summed(loss, row).backward()
    assert row.log_probs_NT.grad.abs().max() == 0
    metrics = loss.loss(row).metrics
    assert (metrics["pairs"], metrics["without_pair"]) == (0, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 0}, "beta"),
        ({"loss_name": "ipo"}, "loss_name"),
        ({"pairs": "some"}, "pairs"),
        ({"alpha": -1}, "alpha"),
        ({"alpha": 7.5, "loss_name": "distillation"}, "no labels"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ConfigError, match=message):
        Preference(**settings)
