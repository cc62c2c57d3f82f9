"""Dynamic Pruning (arXiv 2603.04135) before generation: who is left out, what the rest counts, no bias."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from planning_cases import assert_same

from allotment import Uniform
from allotment.errors import InvalidInputError
from allotment.learning import advantage_estimator
from allotment.learning.selected import selected_advantages_and_weights
from allotment.methods.planners.dynamic_pruning import DynamicPruning, mean_absolute_advantage
from allotment.methods.selectors.completion_pruning import CompletionPruning
from allotment.planning.outcome import Outcome
from allotment.selection import Scored

IDS = [f"p{k}" for k in range(9)]  # prompt k had k of 8 right: h = 2 k (8 - k) / 56, below the mean 0.167 at 0, 1, 7, 8
H = [2 * k * (8 - k) / 56 for k in range(9)]
AT_RISK = [0, 1, 7, 8]


def told(ids=IDS, successes=range(9), **settings):
    """A planner that has seen 8 rollouts of each prompt."""
    planner = DynamicPruning(**{"budget": 8 * len(ids), "bounds": (2, 32), **settings})
    plan = planner.ask(ids, budget=8 * len(ids))
    rewards = [float(j < k) for k in successes for j in range(8)]
    planner.tell(plan, rewards, plan.group_ids())
    return planner


def scored_of(plan, step):
    """The plan's rollouts as a selector sees them, the first k of the 8 of prompt k right; groups in plan order."""
    rows_N = np.repeat(np.arange(len(plan.counts)), plan.counts)
    rewards_N = np.array([float(j < k) for k, n in enumerate(plan.counts) for j in range(n)])
    nothing_N = np.zeros(len(rows_N))
    return Scored(
        step=step,
        progress=0.5,
        prompt_ids=plan.prompt_ids,
        rows_N=rows_N,
        rewards_N=rewards_N,
        advantages_N=advantage_estimator("rloo")(torch.tensor(rewards_N), torch.tensor(rows_N)).numpy(),
        lengths_N=np.ones(len(rows_N), dtype=np.int64),
        truncated_N=nothing_N.astype(bool),
        entropies_N=nothing_N,
        ages_Q=np.zeros(len(plan.counts), dtype=np.int64),
        numbers_N=np.arange(len(rows_N)),
        clip_fractions_N=nothing_N,
    )


def groups_of(plan):
    """Prompts that got rollouts."""
    return int((plan.counts > 0).sum())


def estimate(plan, gradients_Q):
    """The loss's estimate when the rollouts of prompt q have gradient ``gradients_Q[q]``: a mean over groups."""
    return float((plan.loss_factors(groups_of(plan)) * gradients_Q)[plan.counts > 0].mean())


def terms_of_rollouts(plan, step, scores_N, selector):
    """[N] what single rollouts of these scores add to the loss's gradient without the plan's weights; and the factors.

    Through the advantages and weights that training computes; ``scores_N`` has 8 for every prompt.
    """
    scored = scored_of(plan, step)
    selection = selector.select(scored)
    advantages_N, weights_N1 = selected_advantages_and_weights(
        torch.from_numpy(scored.rewards_N),
        torch.from_numpy(scored.rows_N),
        torch.ones(len(scored), 1, dtype=torch.bool),
        selection,
        dtype=torch.float64,
    )
    terms_N = (advantages_N * weights_N1[:, 0]).numpy() * scores_N[np.repeat(plan.counts > 0, 8)]
    return terms_N, plan.loss_factors(groups_of(plan))[scored.rows_N]


@pytest.mark.parametrize("estimator", ["rloo", "dr_grpo"])
def test_the_statistic_is_the_mean_absolute_advantage_that_training_computes(estimator):
    rng = np.random.default_rng(0)
    rows_N = rng.permutation(np.repeat(np.arange(5), [2, 3, 8, 1, 5]))
    rewards_N = rng.normal(size=len(rows_N))
    outcome = Outcome(tuple("abcdef"), np.full(6, 9), rewards_N, rows_N)
    ours = mean_absolute_advantage(outcome, estimator)
    advantages_N = advantage_estimator(estimator)(torch.tensor(rewards_N), torch.tensor(rows_N)).numpy()
    expected = [np.abs(advantages_N[rows_N == q]).mean() if q != 3 else np.nan for q in range(5)]
    np.testing.assert_allclose(ours, [*expected, np.nan], rtol=1e-12)


def test_prompts_below_the_mean_are_at_risk_and_the_rest_is_kept():
    planner = told(bounds=(3, 32))
    plans = [planner.ask(IDS) for _ in range(40)]
    np.testing.assert_array_equal(plans[0].weights, [1 / 0.5 if h < np.mean(H) else 1.0 for h in H])
    assert np.flatnonzero(plans[0].weights > 1).tolist() == AT_RISK
    counts = np.array([plan.counts for plan in plans])
    assert (counts[:, 2:7] == 8).all()
    assert set(np.unique(counts[:, AT_RISK])) == {0, 8}  # C / Q each, or none: the budget shrinks
    assert (counts[:, AT_RISK] == 0).any(axis=0).all()


def test_a_prompt_without_history_is_kept_and_a_pruned_one_keeps_its_history():
    planner = told()
    plan = planner.ask(["new", *IDS, "newer"])
    assert plan.weights[[0, -1]].tolist() == [1, 1]
    assert (plan.counts[[0, -1]] > 0).all()
    plan = next(plan for plan in (planner.ask(IDS) for _ in range(40)) if plan.counts[0] == plan.counts[7] == 0)
    planner.tell(plan, np.arange(plan.budget) % 2, plan.group_ids())  # half right: the largest h there is
    at_risk = planner.ask(IDS).weights > 1
    np.testing.assert_array_equal(at_risk, plan.counts == 0)


@given(
    successes=st.lists(st.integers(0, 8), min_size=1, max_size=9),
    rate=st.sampled_from([0.0, 0.3, 0.99]),
    random=st.booleans(),
    seed=st.integers(0, 20),
)
def test_no_batch_is_emptied(successes, rate, random, seed):
    planner = told(IDS[: len(successes)], successes, rate=rate, random=random, seed=seed)
    plan = planner.ask(IDS[: len(successes)])
    assert plan.budget > 0
    assert (plan.counts[plan.weights == 1] > 0).all()
    if len(set(successes)) == 1 or rate == 0:  # equal prompts, or nothing to prune: the plan of Uniform
        even = Uniform(budget=plan.budget, bounds=(2, 32), seed=seed)
        even.cancel(even.ask(plan.prompt_ids))
        np.testing.assert_array_equal(plan.counts, even.ask(plan.prompt_ids).counts)
        assert (plan.loss_factors(groups_of(plan)) == 1).all()


@pytest.mark.parametrize("rate", [0.3, 0.5, 0.9])
def test_the_gradient_is_unbiased_with_the_variance_of_bernoulli_pruning(rate):
    """Mean, variance, prompts kept and sum of weights, over 4,000 draws: one per step."""
    planner, gradients_Q = told(rate=rate), np.random.default_rng(1).normal(1, 1, len(IDS))
    estimates, kept, weights = [], [], []
    for _ in range(4000):
        plan = planner.ask(IDS)
        planner.cancel(plan)
        estimates.append(estimate(plan, gradients_Q))
        kept.append(int((plan.counts > 0).sum()))
        weights.append(estimate(plan, np.ones(len(IDS))) * len(IDS))
    P_Q = np.where(np.isin(np.arange(9), AT_RISK), rate, 0)
    assert np.mean(estimates) == pytest.approx(gradients_Q.mean(), abs=4 * np.std(estimates) / 4000**0.5)
    assert np.var(estimates) == pytest.approx((P_Q / (1 - P_Q) * gradients_Q**2).sum() / 81, rel=0.1)
    assert np.mean(kept) == pytest.approx((1 - P_Q).sum(), abs=4 * np.std(kept) / 4000**0.5)
    assert np.mean(weights) == pytest.approx(9, abs=4 * np.std(weights) / 4000**0.5)


def test_prompts_and_completions_are_pruned_together_without_bias():
    """Dynamic Pruning as a whole: the weights of the plan times those of the selection, for scores that are fixed."""
    planner, scores_N = told(rate=0.4), np.random.default_rng(3).normal(1, 1, 8 * len(IDS))
    new = DynamicPruning(budget=72, bounds=(2, 32)).ask(IDS)
    whole = terms_of_rollouts(new, 0, scores_N, CompletionPruning(rate=0))[0].sum()
    weighted, unweighted, kept = [], [], []
    for step in range(2000):
        plan = planner.ask(IDS)
        planner.cancel(plan)
        terms_N, factors_N = terms_of_rollouts(plan, step, scores_N, CompletionPruning(rate=0.5))
        weighted.append(factors_N @ terms_N)
        unweighted.append(terms_N.sum())
        kept.append((terms_N != 0).sum())
    assert np.mean(weighted) == pytest.approx(whole, abs=4 * np.std(weighted) / 2000**0.5)
    assert np.mean(unweighted) != pytest.approx(whole, abs=8 * np.std(unweighted) / 2000**0.5)
    assert np.mean(kept) < 0.8 * (terms_of_rollouts(new, 0, scores_N, CompletionPruning(rate=0))[0] != 0).sum()


def test_the_weights_of_both_levels_multiply():
    """1 / ((1 - P_q) (1 - P_o)), relative to all prompts asked."""
    planner = told()
    plan = next(plan for plan in (planner.ask(IDS) for _ in range(40)) if 0 < groups_of(plan) < len(IDS))
    scored = scored_of(plan, 1)
    weights_N = CompletionPruning(rate=0.5).select(scored).weights_N
    product_N = plan.loss_factors(groups_of(plan))[scored.rows_N] * weights_N
    at_risk_N = np.isin(scored.rows_N, AT_RISK)
    smaller_N = np.abs(scored.advantages_N) < rowwise_mean(np.abs(scored.advantages_N), scored.rows_N) - 1e-9
    expected_N = groups_of(plan) / 9 / np.where(at_risk_N, 0.5, 1) / np.where(smaller_N, 0.5, 1)
    np.testing.assert_allclose(product_N[product_N > 0], expected_N[product_N > 0])
    assert ((product_N > 0) | smaller_N).all()
    assert {1.0, 2.0, 4.0} >= {*(product_N[product_N > 0] * 9 / groups_of(plan)).round(9)} > {1.0}


def rowwise_mean(values_N, rows_N):
    """[N] the mean of each value's group."""
    return (np.bincount(rows_N, values_N) / np.maximum(np.bincount(rows_N), 1))[rows_N]


def test_the_deterministic_variant_is_biased():
    """It drops floor(r n_low) = 2 of 4, always those of least h, and counts the other two twice."""
    planner, gradients_Q = told(random=False), np.arange(1.0, 10) ** 2
    plans = [planner.ask(IDS) for _ in range(50)]
    counts = np.array([plan.counts > 0 for plan in plans])
    assert counts.all(axis=0).tolist() == [False, *[True] * 7, False]
    assert not counts[:, [0, 8]].any()
    estimates = [estimate(plan, gradients_Q) for plan in plans]
    np.testing.assert_allclose(estimates, (2 * 4 + 2 * 64 + 9 + 16 + 25 + 36 + 49) / 9)
    assert np.abs(np.array(estimates) - gradients_Q.mean()).min() > 1


def test_without_the_weights_it_is_biased():
    planner, gradients_Q = told(), np.array([1.0, 1, 0, 0, 0, 0, 0, 1, 1])
    plans = [planner.ask(IDS) for _ in range(1000)]
    naive = [gradients_Q[plan.counts > 0].mean() for plan in plans]
    assert np.mean(naive) < gradients_Q.mean() - 20 * np.std(naive) / 1000**0.5


def test_the_draws_follow_the_prompt_and_change_with_step_and_seed():
    plans = [told(seed=seed).ask(order) for seed in (0, 1) for order in (IDS, IDS[::-1])]
    np.testing.assert_array_equal(plans[0].counts, plans[1].counts[::-1])
    assert plans[0].counts.tolist() != plans[2].counts.tolist()
    planner = told()
    assert len({tuple(planner.ask(IDS).counts) for _ in range(20)}) > 5


def test_saved_with_an_open_plan_it_goes_on_bit_for_bit(tmp_path):
    planner = told()
    plan = planner.ask(IDS)
    planner.tell(plan, np.ones(3), plan.group_ids()[:3], final=False)
    planner.save(tmp_path / "planner")
    other = DynamicPruning(budget=72, bounds=(2, 32)).load(tmp_path / "planner")
    for one in (planner, other):
        one.tell(plan, np.zeros(plan.budget - 3), plan.group_ids()[3:])
    assert_same(other.state_dict(), planner.state_dict())
    plans = planner.ask(IDS), other.ask(IDS)
    np.testing.assert_array_equal(plans[0].counts, plans[1].counts)
    np.testing.assert_array_equal(plans[0].weights, plans[1].weights)


@pytest.mark.parametrize("rate", [1.0, 1.5, -0.1, float("nan")])
def test_a_rate_that_keeps_nothing_is_refused(rate):
    with pytest.raises(InvalidInputError, match="0 <= rate < 1"):
        DynamicPruning(budget=72, rate=rate)
