"""Reinforce-Ada, estimated (arXiv 2510.04996 v3): counts and advantages by 1 / sqrt(p), together log p."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from planning_cases import Known, assert_same
from scipy.special import logit
from scipy.stats import binom

from allotment.errors import InfeasibleBudgetError, InvalidInputError, StateError
from allotment.methods.planners.reinforce_ada_est import ReinforceAdaEst
from theory.toy import measured_weights

SHARES = {
    "inverse_root": lambda p, eps: 1 / np.sqrt(p + eps),
    "log": lambda p, eps: np.sqrt((1 - p) / (p + eps)),
    "plain": lambda p, eps: np.sqrt(p * (1 - p)),
}


def knowing(p, **settings):
    """A planner that knows each prompt's success probability."""
    return ReinforceAdaEst(**{"predictor": Known(dict(enumerate(logit(p)))), "bounds": (2, 10**6), **settings})


@given(
    p=st.lists(st.floats(0.001, 0.999), min_size=1, max_size=12),
    rule=st.sampled_from([*SHARES]),
    bounds=st.sampled_from([(2, 12), (3, 32), (2, 400)]),
    extra=st.floats(0, 1),
)
def test_counts_are_proportional_within_the_bounds_and_sum_to_the_budget(p, rule, bounds, extra):
    """Every count is the proportional one at a common scale, clipped, to within a rollout."""
    lower, upper = bounds
    budget = round(len(p) * (lower + extra * (upper - lower)))
    counts_Q = knowing(p, budget=budget, bounds=bounds, rule=rule).ask(range(len(p))).counts
    share_Q = SHARES[rule](np.array(p), 0.01)
    assert counts_Q.sum() == budget
    assert counts_Q.min() >= lower
    assert counts_Q.max() <= upper
    least, most = (counts_Q - 1) / share_Q, (counts_Q + 1) / share_Q  # scales that each count allows
    rising_Q, falling_Q = counts_Q < upper, counts_Q > lower
    assert least[falling_Q].max(initial=0) <= most[rising_Q].min(initial=np.inf) * (1 + 1e-9)


def test_counts_by_hand():
    """p = 0.01, 0.04, 0.25, 1 without epsilon: 10 : 5 : 2 : 1."""
    p = np.array([0.01, 0.04, 0.25, 1 - 1e-9])
    assert knowing(p, budget=180, epsilon=1e-9).ask(range(4)).counts.tolist() == [100, 50, 20, 10]
    assert knowing(p, budget=180, epsilon=1e-9, bounds=(16, 64)).ask(range(4)).counts.tolist() == [64, 64, 35, 17]
    assert knowing([0.1, 0.9], budget=40, rule="log", epsilon=1e-9).ask([0, 1]).counts.tolist() == [36, 4]
    assert knowing([0.5, 0.9], budget=32, rule="plain").ask([0, 1]).counts.tolist() == [20, 12]


def test_the_belief_is_discounted_counts_with_a_beta_prior():
    """N <- lambda N + n: after 3 of 8 and then 6 of 8, phat = (0.9 * 3 + 6 + 1) / (0.9 * 8 + 8 + 2)."""
    planner = ReinforceAdaEst(budget=16)
    for successes in (3, 6):
        plan = planner.ask(["a", "b"], budget=16)
        assert plan.counts.tolist() == [8, 8] or successes == 6
        told = [1.0] * successes + [0.0] * (8 - successes)
        planner.tell(plan, told, ["a"] * 8, allow_missing_groups=True)
    p_Q = planner.ask(["a", "b"]).posterior.success_probability()
    np.testing.assert_allclose(p_Q, [9.7 / 17.2, 1 / 2], rtol=1e-12)


def weight(p, n, shares, rule, epsilon, mean_n):
    """The weight of grad p at n rollouts: E[k (n - k) / (n^2 divisor)] / (p (1 - p)), times n over the mean."""
    k = np.arange(n + 1)
    m = k / n
    divisor = np.sqrt((m if rule == "inverse_root" else m * (1 - m)) + epsilon)
    factor = (binom.pmf(k, n, p) * m * (1 - m) / divisor).sum() / (p * (1 - p))
    return factor * (n / mean_n if shares == "rollouts" else 1.0)


@pytest.mark.parametrize("rule", SHARES)
@pytest.mark.parametrize("shares", ["rollouts", "prompts"])
def test_measured_weight(rule, shares):
    """Counts, advantages and weights together, on a toy with exact gradients, within 4 standard errors."""
    grid, copies, budget = np.array([0.1, 0.3, 0.5, 0.8]), 20, 80 * 24
    p_Q = np.repeat(grid, copies)

    def planner(seed):
        return knowing(p_Q, budget=budget, rule=rule, shares=shares, seed=seed)

    counts_Q = planner(0).ask(range(len(p_Q))).counts
    expected_Q = [weight(p, n, shares, rule, 0.01, 24) for p, n in zip(p_Q, counts_Q, strict=True)]
    expected_P = np.reshape(expected_Q, (4, copies)).mean(1)
    measured = measured_weights(planner, grid, steps=4, warm_up=0, runs=30, copies=copies)
    assert (measured.errors_P < 0.06 * expected_P).all()
    np.testing.assert_array_less(np.abs(measured.weights_P - expected_P), 4 * measured.errors_P)


@pytest.mark.parametrize(("rule", "objective"), [("inverse_root", "log p"), ("log", "log p"), ("plain", "p")])
def test_large_groups_come_to_the_objective_of_v3(rule, objective):
    """w_sample * w_grad is f'(p) up to a constant: 1 / p, or 1; 1 / sqrt(p) if every prompt counts alike."""
    grid = np.array([0.05, 0.2, 0.5, 0.9])
    counts_Q = knowing(grid, budget=40_000, rule=rule, epsilon=1e-5).ask(range(4)).counts
    weights = np.array([weight(p, n, "rollouts", rule, 1e-5, 10_000) for p, n in zip(grid, counts_Q, strict=True)])
    expected = 1 / grid if objective == "log p" else np.ones(4)
    np.testing.assert_allclose(weights / weights[2], expected / expected[2], rtol=0.01)
    if rule == "inverse_root":
        alone = np.array([weight(p, n, "prompts", rule, 1e-5, 10_000) for p, n in zip(grid, counts_Q, strict=True)])
        np.testing.assert_allclose(alone, 1 / np.sqrt(grid), rtol=0.01)


def test_certain_prompts():
    """p = 0 has finitely many rollouts for epsilon; with rules that ask nothing of certain prompts, the lower bound."""
    certain = {0: -800.0, 1: 800.0, 2: 0.0}
    counts = {
        rule: ReinforceAdaEst(budget=60, bounds=(3, 54), rule=rule, predictor=Known(certain))
        .ask([0, 1, 2])
        .counts.tolist()
        for rule in SHARES
    }
    assert counts == {"inverse_root": [48, 5, 7], "log": [52, 3, 5], "plain": [3, 3, 54]}


def test_settings_belong_to_the_state(tmp_path):
    planner = ReinforceAdaEst(budget=16)
    planner.tell(plan := planner.ask(["a", "b"]), [1.0] * 16, plan.group_ids())
    planner.save(tmp_path / "state")
    restored = ReinforceAdaEst(budget=16).load(tmp_path / "state")
    assert_same(restored.state_dict(), planner.state_dict())
    for other in ({"epsilon": 0.1}, {"rule": "log"}, {"shares": "prompts"}):
        with pytest.raises(StateError, match="settings"):
            ReinforceAdaEst(budget=16, **other).load(tmp_path / "state")


@pytest.mark.parametrize(
    ("settings", "text"),
    [({"epsilon": 0.0}, "epsilon"), ({"rule": "sqrt"}, "inverse_root, log, plain"), ({"shares": "tokens"}, "prompts")],
)
def test_settings_refused(settings, text):
    with pytest.raises(InvalidInputError, match=text):
        ReinforceAdaEst(budget=16, **settings)
    with pytest.raises(InfeasibleBudgetError):
        ReinforceAdaEst(budget=16).ask(range(6))
