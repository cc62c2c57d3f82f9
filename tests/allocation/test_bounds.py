"""Every kind of bad input is refused by every method, with the numbers that matter in the message."""

import numpy as np
import pytest

from allotment.allocation import METHODS, allocate, allocate_exact, allocate_relaxed, relaxed_counts, uniform
from allotment.errors import InfeasibleBudgetError, InvalidInputError
from allotment.pricing import RLOO, Estimator, TablePrice

P = [0.1, 0.5, 0.9]
methods = pytest.mark.parametrize("method", METHODS)


@methods
@pytest.mark.parametrize(
    ("budget", "fix"), [(8, "raise the budget"), (97, "raise `upper`"), (-1, "raise the budget"), (10**12, "lower the")]
)
def test_infeasible_budget_names_both_sums_and_a_fix(method, budget, fix):
    with pytest.raises(InfeasibleBudgetError, match=rf"(?s)budget {budget} for 3 prompts.*9 \(sum.*96 \(sum.*{fix}"):
        allocate(P, budget, method=method)


@methods
def test_both_ends_of_the_feasible_budgets_are_feasible(method):
    least = allocate(P, 12, lower=[3, 4, 5], upper=[6, 7, 8], method=method)
    most = allocate(P, 21, lower=[3, 4, 5], upper=[6, 7, 8], method=method)
    assert least.counts.tolist() == [3, 4, 5]
    assert least.multiplier[1] == np.inf
    assert most.counts.tolist() == [6, 7, 8]
    assert most.multiplier[0] == 0.0


@methods
@pytest.mark.parametrize("p", [float("nan"), -0.01, 1.01, float("inf")])
def test_bad_probability(method, p):
    with pytest.raises(InvalidInputError, match=rf"(?s)success probability of prompt 1 .*{p} at index 1"):
        allocate([0.5, p], 16, method=method)


@pytest.mark.parametrize("function", [allocate_exact, allocate_relaxed, relaxed_counts, uniform])
@pytest.mark.parametrize("weight", [float("nan"), -0.01, float("inf")])
def test_bad_weight(function, weight):
    with pytest.raises(InvalidInputError, match=rf"(?s)weight of prompt 1 .*{weight} at index 1"):
        function([0.5, weight], 16)


@methods
def test_empty_batch(method):
    with pytest.raises(InvalidInputError, match="non-empty"):
        allocate([], 0, method=method)


def test_empty_price_and_no_prompts():
    with pytest.raises(InvalidInputError, match="non-empty"):
        allocate_exact(TablePrice(np.zeros((0, 3)), 3), 0)
    with pytest.raises(InvalidInputError, match="non-empty"):
        uniform(0, 0)


@methods
@pytest.mark.parametrize("name", ["lower", "upper"])
@pytest.mark.parametrize("bound", [4.5, 4.0, "4", None, [4, 4], [[4, 4, 4]], [4.0, 4.0, 4.0], True])
def test_bounds_that_are_not_counts(method, name, bound):
    with pytest.raises(InvalidInputError, match=f"`{name}` is not a count"):
        allocate(P, 24, method=method, **{name: bound})


@methods
@pytest.mark.parametrize("budget", [24.0, "24", None, True, 24.5])
def test_budget_that_is_not_an_integer(method, budget):
    with pytest.raises(InvalidInputError, match="budget is not an integer"):
        allocate(P, budget, method=method)


@methods
def test_lower_above_upper(method):
    with pytest.raises(InvalidInputError, match=r"(?s)lower 9, upper 8 for prompt 2"):
        allocate(P, 24, lower=[3, 3, 9], upper=8, method=method)


@methods
@pytest.mark.parametrize(
    ("estimator", "lower", "least"), [("rloo", 1, 2), ("dr_grpo", 2, 3), ("dr-grpo", [3, 2, 3], 3)]
)
def test_lower_where_the_variance_is_not_convex(method, estimator, lower, least):
    with pytest.raises(
        InvalidInputError, match=rf"(?s)convex and falling only from n = {least}.*lower >= {least}.*0.028"
    ):
        allocate(P, 24, lower=lower, estimator=estimator, method=method)


@methods
def test_lowest_convex_bound_is_allowed(method):
    assert allocate(P, 7, lower=2, estimator="rloo", method=method).budget == 7


@methods
def test_unknown_estimator(method):
    with pytest.raises(InvalidInputError, match="'rloo', 'dr_grpo'"):
        allocate(P, 24, estimator="ppo", method=method)


def test_unknown_method():
    with pytest.raises(InvalidInputError, match="inverse-variance"):
        allocate(P, 24, method="best")


@methods
@pytest.mark.parametrize("keys", [[1, 1, 2], [1, 2], ["a", None, 3], [[1, 2, 3]]])
def test_tie_keys_that_do_not_order(method, keys):
    with pytest.raises(InvalidInputError, match="tie_keys"):
        allocate(P, 24, tie_keys=np.array(keys, dtype=object), method=method)


@methods
def test_two_rules_for_ties(method):
    with pytest.raises(InvalidInputError, match="tie_keys and seed"):
        allocate(P, 24, tie_keys=[1, 2, 3], seed=0, method=method)


@pytest.mark.parametrize("epsilon", [0.0, -1.0, float("nan"), float("inf")])
def test_epsilon(epsilon):
    from allotment.allocation import inverse_accuracy, inverse_variance

    for rule in (inverse_accuracy, inverse_variance):
        with pytest.raises(InvalidInputError, match="epsilon"):
            rule(P, 24, epsilon=epsilon)


def test_relaxation_without_a_closed_form():
    custom = Estimator("mean", 1, lambda n: 1 / np.asarray(n), lambda n: 1 / (np.asarray(n) * (np.asarray(n) + 1.0)))
    assert allocate_exact([0.2, 0.1], 8, lower=1, estimator=custom).budget == 8
    with pytest.raises(InvalidInputError, match="no closed form"):
        allocate_relaxed([0.2, 0.1], 8, estimator=custom)


def test_estimator_whose_gains_grow_is_refused():
    concave = Estimator("concave", 2, lambda n: -np.square(n), lambda n: 2.0 * np.asarray(n) + 1)
    with pytest.raises(InvalidInputError, match="not convex and falling"):
        allocate_exact([0.2, 0.1], 8, estimator=concave)


def test_price_of_the_wrong_shape():
    class Flat:
        minimum_count = 2

        def __len__(self):
            return 3

        def gains(self, grid_K):
            return RLOO.gain(grid_K)

        def cost(self, counts_Q):
            return RLOO.variance(counts_Q)

    with pytest.raises(InvalidInputError, match="wrong shape"):
        allocate_exact(Flat(), 24)
