"""DAPO's dynamic sampling (arXiv 2503.14476): which candidates are drawn, until when, and what is trained on."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from planning_cases import assert_same

from allotment.errors import InfeasibleBudgetError, InvalidInputError
from allotment.learning.selected import selected_advantages_and_weights
from allotment.methods.planners.dapo import DAPO, MixedGroups
from allotment.selection import Scored, check_selection, emptied_groups

IDS = [f"p{q}" for q in range(12)]


def make(**settings):
    return DAPO(**{"budget": 32, "bounds": (3, 32), "trained_prompts": 4, **settings})


def rollouts_of(plan, p_Q, rng):
    """Rewards with these success probabilities; exactly half right in a mixed group where p is 1/2."""
    even = [
        float(j % 2) if p == 0.5 else float(rng.random() < p)
        for p, n in zip(p_Q, plan.counts, strict=True)
        for j in range(n)
    ]
    return even, plan.group_ids()


def one_step(planner, p_Q, rng=None, ids=IDS, **asked):
    """All plans of a step, and its rollouts as the selector sees them."""
    rng, plans, rewards = rng or np.random.default_rng(0), [], []
    while True:
        plans.append(planner.ask(ids, **(asked if not plans else {})))
        told, groups = rollouts_of(plans[-1], p_Q, rng)
        planner.tell(plans[-1], told, groups)
        rewards += told
        if planner.done:
            break
    rows_N = np.concatenate([np.repeat(np.arange(len(ids)), plan.counts) for plan in plans])
    return plans, scored_of(np.array(rewards), rows_N, plans[0].step + 1)


def scored_of(rewards_N, rows_N, step=1):
    here, rows_N = np.unique(rows_N, return_inverse=True)
    nothing_N = np.zeros(len(rows_N))
    mean_N = (np.bincount(rows_N, rewards_N) / np.bincount(rows_N))[rows_N]
    size_N = np.bincount(rows_N)[rows_N]
    return Scored(
        step=step, progress=0.5, prompt_ids=tuple(here.tolist()), rows_N=rows_N, rewards_N=rewards_N,
        advantages_N=(rewards_N - mean_N) * size_N / np.maximum(size_N - 1, 1),
        lengths_N=nothing_N.astype(np.int64), truncated_N=nothing_N.astype(bool), entropies_N=nothing_N,
        ages_Q=np.zeros(len(here), dtype=np.int64), numbers_N=np.arange(len(rows_N)), clip_fractions_N=nothing_N,
    )  # fmt: skip


def kept_groups(selection, scored):
    return sorted({scored.prompt_ids[row] for row in scored.rows_N[selection.is_kept]})


@given(
    kinds=st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=12, max_size=12),
    prompts=st.integers(1, 12),
    draw=st.sampled_from([None, 1, 3, 12]),
    seed=st.integers(0, 9),
)
def test_it_draws_until_enough_groups_are_mixed_or_nobody_is_left(kinds, prompts, draw, seed):
    planner = make(budget=8 * prompts, trained_prompts=prompts, draw=draw, seed=seed)
    plans, scored = one_step(planner, kinds)
    counts = np.array([plan.counts for plan in plans])
    assert (counts[counts > 0] == 8).all()
    assert ((counts > 0).sum(axis=0) <= 1).all()  # each candidate once
    assert ((counts > 0).sum(axis=1)[:-1] == (draw or prompts)).all()
    mixed = np.cumsum([(np.array(kinds)[row > 0] == 0.5).sum() for row in counts])
    assert (mixed[:-1] < prompts).all()
    assert mixed[-1] >= prompts or (counts > 0).any(axis=0).all()
    selection = check_selection(planner.selector.select(scored), scored)
    kept = kept_groups(selection, scored)
    assert len(kept) == min(prompts, mixed[-1])
    assert all(kinds[q] == 0.5 for q in kept)
    assert set(selection.weights_N) <= {0.0, 1.0}
    assert selection.is_kept.sum() == 8 * len(kept)  # whole groups
    assert emptied_groups(selection, scored) == (counts > 0).sum() - len(kept)


def test_candidates_come_in_another_order_at_each_step_and_seed_whatever_the_order_of_the_batch():
    first = [make(seed=seed).ask(order).counts for seed in (0, 1) for order in (IDS, IDS[::-1])]
    np.testing.assert_array_equal(first[0], first[1][::-1])
    assert first[0].tolist() != first[2].tolist()
    planner = make()
    assert len({tuple(one_step(planner, [0.5] * 12)[0][0].counts) for _ in range(8)}) > 4


def test_surplus_groups_are_dropped_by_lot_and_the_loss_averages_over_the_rest():
    selector = MixedGroups(limit=4, seed=3)
    step = [scored_of(np.tile([0.0, 1.0], 9), np.repeat(np.arange(9), 2), step) for step in range(400)]
    selections = [selector.select(scored) for scored in step]
    kept = [kept_groups(*pair) for pair in zip(selections, step, strict=True)]
    assert {len(k) for k in kept} == {4}
    share_Q = np.bincount(np.concatenate(kept), minlength=9) / 400
    np.testing.assert_allclose(share_Q, 4 / 9, atol=4 * (4 / 9 * 5 / 9 / 400) ** 0.5)
    assert (selections[0].baseline, selections[0].denominator) == ("generated", "kept")


def test_where_no_group_is_mixed_nothing_is_learnt():
    plans, scored = one_step(make(), [0.0, 1.0] * 6)
    assert sum(plan.budget for plan in plans) == 12 * 8  # every candidate was tried
    selection = make().selector.select(scored)
    assert not selection.is_kept.any()
    advantages_N, weights_NT = selected_advantages_and_weights(
        torch.tensor(scored.rewards_N), torch.tensor(scored.rows_N), torch.ones(len(scored), 3), selection
    )
    assert not advantages_N.any()
    assert not weights_NT.any()


@pytest.mark.parametrize("prompts", [None, 12, 40])
def test_with_no_spare_candidates_a_step_is_one_round_of_the_whole_budget(prompts):
    planner = make(budget=75, trained_prompts=prompts)
    plans, _ = one_step(planner, [0.0] * 12)
    assert sorted(plans[0].counts.tolist()) == [6] * 9 + [7] * 3
    assert len(plans) == 1
    assert one_step(planner, [0.5] * 12, budget=60)[0][0].counts.tolist() == [5] * 12


def test_a_remainder_of_the_budget_is_spread_over_each_round():
    plans, _ = one_step(make(budget=30), [0.0] * 12)
    assert [sorted(plan.counts[plan.counts > 0].tolist()) for plan in plans] == [[7, 7, 8, 8]] * 3


@pytest.mark.parametrize(("budget", "allowed"), [(11, "12 .* to 128"), (129, "12 .* to 128")])
def test_a_budget_that_contradicts_the_batch_is_refused(budget, allowed):
    planner = make()
    with pytest.raises(InfeasibleBudgetError, match=allowed):
        planner.ask(IDS, budget=budget)
    assert one_step(planner, [0.5] * 12)[0][0].budget == 32


def test_rewards_that_did_not_come_make_no_mixed_group():
    planner = make()
    plan = planner.ask(IDS)
    group = plan.group_ids()[0]
    planner.tell(plan, [1.0], [group], allow_missing_groups=True)
    assert not planner.done
    assert planner.missing_rollouts == 31
    assert (planner.ask(IDS).counts[plan.counts > 0] == 0).all()


def test_success_is_what_the_threshold_says():
    rewards_N, rows_N = np.array([0.1, 0.2, 0.9, 0.2, 0.9, 1.0]), np.repeat(np.arange(3), 2)
    for threshold, kept in [(0.5, [1]), (0.15, [0]), (0.95, [2])]:
        scored = scored_of(rewards_N, rows_N)
        assert kept_groups(MixedGroups(success_threshold=threshold).select(scored), scored) == kept


def test_no_prompt_is_re_weighted_against_another():
    """RLOO: what a candidate contributes, over its gradient p (1 - p), is 1 / (share of mixed groups) for every p."""
    p_P = np.array([0.05, 0.2, 0.499])
    p_Q, rng, steps = np.tile(p_P, 40), np.random.default_rng(0), 1000
    planner, weights = make(budget=32, trained_prompts=8, bounds=(4, 4)), np.zeros((steps, 3))
    for step in range(steps):
        _, scored = one_step(planner, p_Q, rng, range(120))
        p_N = p_Q[np.array(scored.prompt_ids)][scored.rows_N]
        score_N = (scored.rewards_N - p_N) / (p_N * (1 - p_N))  # of a logit, over the gradient
        terms_N = planner.selector.select(scored).weights_N * scored.advantages_N * score_N / 4 / 8
        weights[step] = [terms_N[p_N == p].sum() * 3 for p in p_P]
    expected = 1 / (1 - p_P**4 - (1 - p_P) ** 4).mean()
    assert (np.abs(weights.mean(0) - expected) < 4 * weights.std(0) / steps**0.5).all()


def test_saved_between_rounds_it_goes_on_bit_for_bit(tmp_path):
    planner = make(trained_prompts=4, draw=3)
    plan = planner.ask(IDS)
    planner.tell(plan, np.zeros(24), plan.group_ids())
    planner.save(tmp_path / "planner")
    other = make(trained_prompts=4, draw=3).load(tmp_path / "planner")
    assert not other.done
    for _ in range(2):
        plans = planner.ask(IDS), other.ask(IDS)
        np.testing.assert_array_equal(plans[0].counts, plans[1].counts)
        for one, its in zip((planner, other), plans, strict=True):
            one.tell(its, np.zeros(24), its.group_ids())
        assert_same(other.state_dict(), planner.state_dict())


@pytest.mark.parametrize(
    "wrong", [{"trained_prompts": 0}, {"draw": 0}, {"trained_prompts": 2.5}, {"success_threshold": float("nan")}]
)
def test_bad_settings_are_refused(wrong):
    with pytest.raises(InvalidInputError):
        make(**wrong)
