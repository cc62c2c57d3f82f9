"""The belief as baseline, and prompts drawn with known probabilities: prices, unbiasedness, budgets, state."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planning_cases import IDS

from allotment import VIP
from allotment.allocation.inclusion import systematic, with_sum
from allotment.errors import InfeasibleBudgetError, InvalidInputError, StateError
from allotment.learning import baseline_advantages, rollout_weights
from allotment.planning.choosing import PromptChoice
from allotment.planning.gradient_size import USUAL_KAPPA, GradientSize
from allotment.planning.shrinkage import Shrinkage
from allotment.prediction import DiscountedCounts
from allotment.types import Plan, Posterior

MANY = tuple(f"m{i}" for i in range(40))
CHANCE = dict(zip(MANY, np.linspace(0.02, 0.98, len(MANY)), strict=True))


def joint(**settings):
    return VIP(
        **{"budget": 24, "estimator": "shrinkage", "choose": "prompts", "predictor": DiscountedCounts()} | settings
    )


def taught(planner, steps=4, seed=0):
    """A planner after some steps over all prompts."""
    random = np.random.default_rng(seed)
    for _ in range(steps):
        plan = planner.ask(MANY)
        groups = plan.group_ids()
        planner.tell(plan, [float(random.random() < CHANCE[g]) for g in groups], groups)
    return planner


def test_all_prompts_are_taken_where_only_rollouts_are_chosen():
    plan = taught(joint(choose="rollouts", budget=60)).ask(MANY)
    assert plan.weights is None
    assert plan.candidates is None
    assert plan.prompt_ids == MANY
    assert plan.budget == 60
    assert plan.counts.min() >= 1
    assert plan.baselines == pytest.approx(plan.posterior.success_probability())
    assert (plan.baseline_shares[plan.counts == 1] == 1).all()
    assert ((plan.baseline_shares[plan.counts > 1] < 1) & (plan.baseline_shares[plan.counts > 1] > 0)).all()


@pytest.mark.parametrize("settings", [{}, {"bounds": (2, 2)}, {"estimator": "rloo", "bounds": (3, 8)}], ids=str)
def test_fewer_prompts_and_the_whole_budget(settings):
    planner = taught(joint(**settings))
    plan = planner.ask(MANY)
    assert len(plan.prompt_ids) < len(MANY)
    assert plan.budget == 24
    lower, upper = planner.bounds
    assert ((plan.counts >= lower) & (plan.counts <= upper)).all()
    assert plan.candidates == len(MANY)
    assert ((plan.weights >= 1) & (plan.weights <= 16 + 1e-9)).all()
    assert plan.allocation.is_certified
    assert (plan.baselines is None) == (planner.estimator == "rloo")


def test_every_prompt_is_drawn_as_often_as_its_weight_says():
    """The mean of 1 / pi over draws is 1 for every candidate, and the weights have mean 1 over candidates."""
    planner = taught(joint())
    drawn, weights, plans = dict.fromkeys(MANY, 0.0), [], 1000
    for _ in range(plans):
        plan = planner.ask(MANY)
        planner.cancel(plan)
        weights.append(plan.weights.sum() / plan.candidates)
        for prompt, weight in zip(plan.prompt_ids, plan.weights, strict=True):
            drawn[prompt] += weight / plans
    se = np.sqrt(15 / plans)  # a weight of 16 at most: Var <= E[w^2] - 1 <= 15
    assert np.array(list(drawn.values())) == pytest.approx(1.0, abs=5 * se)
    assert np.mean(weights) == pytest.approx(1.0, abs=4 * np.std(weights) / np.sqrt(plans))


def expected_gradient(seed, wrong=None, belief=None, share=None):
    """Of a toy step, exactly, and the gradient it should be: the mean over M candidates of that of p.

    A prompt's policy has one parameter, its logit: a rollout's score is r - p, its length 4 if it succeeds, else 1. All
    orders and starts of the draw and all rewards of all groups are summed up with their probabilities, and go through
    advantages, loss weights and the plan's factors as in a trainer.
    """
    random = np.random.default_rng(seed)
    m = 4
    p_M, belief_M, share_M = random.random(m), random.normal(size=m), random.random(m)
    belief_M = belief_M if belief is None else np.full(m, belief)
    share_M = share_M if share is None else np.full(m, share)
    counts_M = random.integers(1 if share is None else 2, 4, m)
    chances_M = with_sum(random.uniform(0.1, 1, m), 2, 0.1)
    gradients_M = np.zeros(m)
    for q in range(m):
        for rewards in itertools.product((0.0, 1.0), repeat=int(counts_M[q])):
            r = torch.tensor(rewards, dtype=torch.float64)
            group = torch.zeros(len(r), dtype=torch.long)
            baseline = belief_M[q] + (0.3 * r if wrong == "own reward" else torch.zeros_like(r))
            advantages = baseline_advantages(r, group, baseline, share_M[q] * torch.ones_like(r))
            mask = torch.arange(4) < (1 + 3 * r[:, None])
            length, believed = ("mean", False) if wrong == "length" else ("sum", True)
            weights = rollout_weights(group, mask, length=length, believed=believed, dtype=torch.float64)
            token_scores = (r - p_M[q]) / mask.sum(1)
            value = (weights * (advantages * token_scores)[:, None]).sum().item()
            gradients_M[q] += np.prod(np.where(r > 0, p_M[q], 1 - p_M[q])) * value
    total, orders = 0.0, list(itertools.permutations(range(m)))
    for order in orders:
        marks = np.unique(np.append(np.cumsum(chances_M[list(order)]) % 1.0, [0.0, 1.0]))
        for low, high in itertools.pairwise(marks):
            drawn = np.flatnonzero(systematic(chances_M, order, (low + high) / 2))
            ids = tuple(drawn.tolist())
            weights_Q = np.ones(len(ids)) if wrong == "no weights" else 1 / chances_M[drawn]
            plan = Plan(ids, counts_M[drawn], 0, weights=weights_Q, candidates=m)
            update = (plan.loss_factors(len(ids)) * gradients_M[drawn]).mean()  # prompt_mean over the drawn
            total += (high - low) * update / len(orders)
    return total, (p_M * (1 - p_M)).mean()


@given(seed=st.integers(0, 2**20))
@settings(max_examples=15)
def test_the_step_is_unbiased_for_any_probabilities_counts_beliefs_and_shares(seed):
    total, target = expected_gradient(seed)
    assert total == pytest.approx(target, abs=1e-9)


@pytest.mark.parametrize("wrong", ["own reward", "no weights", "length"])
def test_what_makes_it_biased(wrong):
    total, target = expected_gradient(3, wrong)
    assert abs(total - target) > 0.01


def test_divided_by_its_length_the_others_rewards_are_a_baseline_and_a_belief_is_a_bias():
    of_others = [expected_gradient(3, "length", belief=m, share=0.0)[0] for m in (-1.0, 1.0)]
    of_belief = [expected_gradient(3, "length", belief=m, share=0.5)[0] for m in (-1.0, 1.0)]
    assert of_others[0] == pytest.approx(of_others[1], abs=1e-12)
    assert abs(of_belief[0] - of_belief[1]) > 0.01


def test_the_price_is_the_variance_it_stands_for():
    """Monte Carlo of the gradient under independent scores, from n = 1 to 32 and sharp to flat beliefs, within 1 %."""
    from allotment.pricing import ShrinkagePrice

    random = np.random.default_rng(5)
    for alpha, beta in ((30.0, 60.0), (2.0, 3.0), (1.0, 1.0)):
        mean, total = alpha / (alpha + beta), alpha + beta
        a, v = alpha * beta / (total * (total + 1)), mean * (1 - mean) / (total + 1)
        price = ShrinkagePrice(np.array([a]), np.array([v]))
        for n in (1, 2, 5, 32):
            runs = 2**22 // n
            rewards = (random.random((runs, n)) < random.beta(alpha, beta, (runs, 1))).astype(np.float64)
            w = price.shares(np.array([n]))[0]
            others = (rewards.sum(1, keepdims=True) - rewards) / max(n - 1, 1)
            advantages = rewards - w * mean - (1 - w) * others
            # scores are +-1 and independent of all else: the variance of the mean of A s is E[A^2] / n
            assert price.cost(np.array([n]))[0] == pytest.approx((advantages**2).mean() / n, rel=0.01)


def test_the_draw_does_not_depend_on_the_order_of_the_candidates():
    one, other = taught(joint()), taught(joint())
    plan, turned = one.ask(MANY), other.ask(MANY[::-1])
    assert dict(zip(plan.prompt_ids, plan.counts.tolist(), strict=True)) == dict(
        zip(turned.prompt_ids, turned.counts.tolist(), strict=True)
    )


def test_a_saved_planner_goes_on_bit_for_bit(tmp_path):
    planner = taught(joint())
    planner.save(tmp_path / "planner.safetensors")
    copy = joint().load(tmp_path / "planner.safetensors")
    one, other = (taught(p, 2, seed=7).ask(MANY) for p in (planner, copy))
    assert one.prompt_ids == other.prompt_ids
    assert one.counts.tolist() == other.counts.tolist()
    assert one.weights.tobytes() == other.weights.tobytes()
    assert one.baselines.tobytes() == other.baselines.tobytes()
    with pytest.raises(StateError, match="choose"):
        joint(choose=PromptChoice(least_probability=0.1)).load(tmp_path / "planner.safetensors")


def test_tokens_hold_in_expectation_with_the_prompts_own_cost():
    planner = joint(budget=400, unit="tokens", choose=PromptChoice(prompt_cost=5.0))
    random, spent = np.random.default_rng(0), []
    for step in range(60):
        plan = planner.ask(MANY)
        groups = plan.group_ids()
        lengths = random.integers(8, 13, len(groups))
        spent.append(int(lengths.sum()) + 5 * len(plan.prompt_ids) if step >= 20 else np.nan)
        planner.tell(plan, (random.random(len(groups)) < 0.5).astype(float), groups, lengths=lengths)
    assert 0.9 * 400 < np.nanmean(spent) < 1.05 * 400


def test_a_cost_of_prompts_makes_them_fewer_and_the_rollouts_stay():
    cheap, dear = (taught(joint(choose=PromptChoice(prompt_cost=k))).ask(MANY) for k in (0.0, 8.0))
    assert len(dear.prompt_ids) < len(cheap.prompt_ids)
    assert dear.budget == cheap.budget == 24


def test_rewards_of_minus_one_and_one_are_compared_with_a_belief_in_their_units():
    planner = joint(choose="rollouts", budget=60)
    random = np.random.default_rng(0)
    for _ in range(3):
        plan = planner.ask(MANY)
        groups = plan.group_ids()
        planner.tell(plan, [2.0 * (random.random() < CHANCE[g]) - 1 for g in groups], groups)
    plan = planner.ask(MANY)
    assert plan.baselines == pytest.approx(2 * plan.posterior.success_probability() - 1)
    assert plan.baselines.min() < -0.5


def test_shaped_rewards_count_their_spread():
    shrinkage, random = Shrinkage(), np.random.default_rng(0)
    wins = random.random(4000) < 0.5
    shrinkage.observe(np.where(wins, 1.0, 0.0) + random.normal(0, 0.3, 4000), wins)
    belief = Posterior(np.zeros(1), np.full(1, 0.5))
    plain, spread = Shrinkage().price(belief).variance, shrinkage.price(belief).variance
    assert spread - plain == pytest.approx(0.09, rel=0.1)


def test_kappa_is_learnt_from_scores():
    random, size = np.random.default_rng(0), GradientSize()
    assert size.kappa == USUAL_KAPPA
    belief = Posterior(np.zeros(40), np.zeros(40))  # p = 1/2, known
    for _ in range(60):
        rows = np.repeat(np.arange(40), 4)
        wins = (random.random(160) < 0.5).astype(np.float64)
        scores = (wins - 0.5)[:, None] * np.array([[2.0, 0.0]]) + random.normal(size=(160, 2)) * 0.5
        size.observe(belief, wins, rows, scores)
    # g = E[x s] = (1/2, 0), |s|^2 = 1 + 1/2, (p (1 - p))^2 = 1/16: kappa = (1/4) / (3/2) * 16
    assert size.kappa == pytest.approx(0.25 / 1.5 * 16, rel=0.1)


@pytest.mark.parametrize("estimator", ["shrinkage", "rloo"])
def test_scores_reach_the_choice_of_prompts(estimator):
    planner = taught(joint(bounds=(2, 8), estimator=estimator), steps=1)
    plan = planner.ask(MANY)
    groups = plan.group_ids()
    rewards = np.arange(len(groups)) % 2.0
    planner.tell(plan, rewards, groups, scores=(rewards - 0.5)[:, None] * np.ones((1, 3)))
    assert planner.sizes.kappa > USUAL_KAPPA


@pytest.mark.parametrize(
    ("settings", "asked", "error", "text"),
    [
        ({"estimator": "dr_grpo", "bounds": (3, 8)}, MANY, InvalidInputError, "choose='prompts'.*dr_grpo"),
        ({"price": "plug_in"}, MANY, InvalidInputError, "plug_in"),
        ({"rounds": 2}, MANY, InvalidInputError, "rounds=2"),
        ({"choose": "both"}, MANY, InvalidInputError, "'rollouts', 'prompts'"),
        ({"estimator": "rloo", "bounds": (1, 8)}, MANY, InvalidInputError, "2 <= lower"),
        ({"bounds": (1, 2)}, MANY[:8], InfeasibleBudgetError, "more candidates"),
        ({"choose": PromptChoice(least_probability=0.9)}, MANY, InfeasibleBudgetError, "least probability"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_cannot_be_is_refused(settings, asked, error, text):
    with pytest.raises(error, match=text):
        joint(**settings).ask(asked)


@pytest.mark.parametrize("least", [0.0, 1.5, float("nan")])
def test_a_least_probability_outside_its_range(least):
    with pytest.raises(InvalidInputError, match="least_probability"):
        PromptChoice(least_probability=least)


def test_planners_without_a_belief_refuse_shrinkage():
    from allotment.planning import make_planner

    with pytest.raises(InvalidInputError, match="no belief"):
        make_planner("dynamic-pruning", budget=64, estimator="shrinkage")
    assert make_planner("uniform", budget=64, estimator="shrinkage").ask(IDS).baselines is not None


def test_a_state_whose_open_plan_belongs_to_no_step():
    planner = VIP(budget=60, rounds=2)
    planner.ask(IDS)
    state = planner.state_dict()
    state["predictor"]["rounds"]["steps"] = {}
    with pytest.raises(StateError, match="belongs to no step"):
        VIP(budget=60, rounds=2).load_state_dict(state)


def scored_world(planner, steps, seed=0):
    """p is known to be 1/2 or so; a failure's score is three times a success's in length."""
    random = np.random.default_rng(seed)
    for _ in range(steps):
        plan = planner.ask(MANY)
        groups = plan.group_ids()
        wins = random.random(len(groups)) < np.array([CHANCE[g] for g in groups])
        scores = np.where(wins, 1.0, 3.0)[:, None] * random.choice([-1.0, 1.0], (len(groups), 4))
        planner.tell(plan, wins.astype(float), groups, scores=scores)
    return planner.ask(MANY)


def test_a_baseline_weighted_by_scores_is_that_of_least_variance():
    plan = scored_world(joint(choose="rollouts", budget=400, baseline="score_weighted"), 60)
    p = np.array([CHANCE[i] for i in plan.prompt_ids])
    best = p / (p + 9 * (1 - p))  # E[r |s|^2] / E[|s|^2]
    assert np.abs(plan.baselines - best).mean() < 0.05
    assert np.abs(plan.posterior.success_probability() - best).mean() > 0.2


def test_without_scores_it_is_the_belief_and_it_must_be_told_them():
    planner = joint(baseline="score_weighted")
    assert planner.contract.told == {"scores"}
    plan = taught(planner).ask(MANY)
    assert plan.baselines == pytest.approx(plan.posterior.success_probability())
    with pytest.raises(InvalidInputError, match=r"baseline='score_weighted' together with estimator='rloo'"):
        joint(baseline="score_weighted", estimator="rloo", bounds=(2, 8))


def test_a_baseline_weighted_by_scores_is_saved_bit_for_bit():
    planner = joint(budget=60, baseline="score_weighted")
    scored_world(planner, 3)
    state = planner.state_dict()
    copy = joint(budget=60, baseline="score_weighted")
    copy.load_state_dict(state)
    one, other = (scored_world(p, 2, seed=3) for p in (planner, copy))
    assert one.baselines.tobytes() == other.baselines.tobytes()
