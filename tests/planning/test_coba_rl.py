"""CoBA-RL (arXiv 2602.03048) through ask and tell: easy prompts while the policy fails, hard ones once it succeeds."""

import numpy as np
import pytest
from planning_cases import Known, assert_same, rewards_for

from allotment.allocation import allocate_exact
from allotment.errors import InvalidInputError, StateError
from allotment.methods.planners.coba_rl import CoBARL, coba_price

P = np.arange(1, 16) / 16
IDS = list(range(15))


def knowing(**changes):
    """A planner that knows each prompt's success probability, i/16."""
    logits = dict(zip(IDS, np.log(P / (1 - P)), strict=True))
    return CoBARL(**{"budget": 240, "predictor": Known(logits), **changes})


def told(planner, rate, steps=1):
    """After steps in which this share of every group succeeded (whole numbers of 16 rollouts)."""
    for _ in range(steps):
        plan = planner.ask(IDS)
        within = np.concatenate([np.arange(n) for n in plan.counts])
        planner.tell(plan, within < rate * np.repeat(plan.counts, plan.counts), plan.group_ids())
    return planner


def expected(alpha, budget=240):
    price = coba_price(1 / (1 + np.exp(-np.log(P / (1 - P)))), alpha, 11 - alpha, tau=1.0)
    return allocate_exact(price, budget, lower=2, upper=128).counts


def test_a_failing_policy_exploits_and_an_able_one_explores():
    failing, able = told(knowing(), 0.0), told(knowing(), 1.0)
    assert failing.ask(IDS).counts.tolist() == expected(1.5 + 8 * 1.0).tolist()
    assert able.ask(IDS).counts.tolist() == expected(1.5 + 8 / (1 + np.exp(5))).tolist()
    mean_p = [float(planner.ask(IDS).counts @ P / 240) for planner in (failing, able)]
    assert mean_p[0] > 0.6 > 0.4 > mean_p[1]


def test_before_the_first_step_the_prediction_says_how_able_the_policy_is():
    assert knowing().ask(IDS).counts.tolist() == expected(1.5 + 8 / (1 + np.exp(0.0))).tolist()  # mean p is 1/2
    unseen = CoBARL(budget=240).ask(IDS)
    assert unseen.posterior.success_probability().tolist() == [0.5] * 15
    assert unseen.counts.tolist() == [16] * 15


@pytest.mark.parametrize("middling", [1, 3, 4])
def test_few_prompts_of_value_may_get_all_they_can(middling):
    p = np.array([*np.linspace(0.4, 0.6, middling), *np.full(15 - middling, 1e-9)])
    planner = knowing(predictor=Known(dict(enumerate(np.log(p / (1 - p))))))
    alpha = 1.5 + 8 * (1 - p.mean())
    counts, price = planner.ask(IDS).counts, coba_price(p, alpha, 11 - alpha, tau=1.0)
    assert counts.tolist() == allocate_exact(price, 240, lower=2, upper=128).counts.tolist()
    assert counts.max() > 50


def test_the_failure_rate_is_averaged_over_the_window_and_over_prompts_not_rollouts():
    planner = told(told(knowing(window=3), 0.0, steps=2), 1.0, steps=1)
    assert planner.failure.mean == pytest.approx(2 / 3)
    assert planner.ask(IDS).counts.tolist() == expected(1.5 + 8 * 2 / 3).tolist()
    told(planner, 1.0, steps=2)
    assert planner.failure.mean == 0.0
    uneven = knowing()
    plan = uneven.ask([0, 1], budget=40)
    uneven.tell(plan, np.repeat([1.0, 0.0], plan.counts), plan.group_ids())
    assert plan.counts[0] != plan.counts[1]
    assert uneven.failure.mean == 0.5


def test_missing_rollouts_count_neither_way():
    planner = knowing()
    plan = planner.ask([0, 1, 2], budget=30)
    planner.tell(plan, [1.0, 0.0], [1, 1], allow_missing_groups=True)
    assert planner.failure.mean == 0.5
    plan = planner.ask([0, 1, 2], budget=30)
    planner.tell(plan, [], [], allow_missing_groups=True)
    assert planner.failure.mean == 0.5


def test_prompts_that_never_or_always_succeed_keep_the_least():
    planner, random = CoBARL(budget=160, bounds=(2, 64)), np.random.default_rng(0)
    p = np.array([0.0, 1.0, *np.full(8, 0.5)])
    for _ in range(12):
        plan = planner.ask(range(10))
        rewards, groups = rewards_for(plan, random, p)
        planner.tell(plan, rewards, groups)
    assert planner.ask(range(10)).counts[:2].max() <= 3 < planner.ask(range(10)).counts[2:].min()


def test_state_goes_on_bit_for_bit_and_keeps_the_window(tmp_path):
    planner = told(CoBARL(budget=240, window=3), 0.4, steps=5)
    planner.save(tmp_path / "planner")
    loaded = CoBARL(budget=240, window=3).load(tmp_path / "planner")
    for one in (planner, loaded):
        told(one, 0.9, steps=2)
    assert_same(planner.state_dict(), loaded.state_dict())
    for other in ({"window": 4}, {"kappa": 15.0}, {"tau": 8.0}, {"gamma": 5.0}, {"alpha_bounds": (1.5, 8.0)}):
        with pytest.raises(StateError, match="does not fit"):
            CoBARL(budget=240, **{"window": 3, **other}).load(tmp_path / "planner")
    longer = planner.state_dict()
    longer["predictor"]["failure"]["rates"] = np.zeros(4)
    before = planner.state_dict()
    with pytest.raises(StateError, match="'rates'"):
        planner.load_state_dict(longer)
    assert_same(planner.state_dict(), before)


@pytest.mark.parametrize(
    "setting",
    [
        {"kappa": 9.5},
        {"alpha_bounds": (0.0, 9.5)},
        {"alpha_bounds": (5.0, 4.0)},
        {"slope": -1.0},
        {"gamma": 0.0},
        {"tau": float("nan")},
        {"window": 0},
        {"window": 2.5},
    ],
)
def test_settings_without_meaning_are_refused(setting):
    with pytest.raises(InvalidInputError, match="outside its range"):
        CoBARL(budget=240, **setting)
