"""What every method optimises: measured weights of prompts against the formulas that docs/methods.md gives."""

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

from allotment.methods.planners.dynamic_pruning import DynamicPruning
from allotment.methods.selectors.completion_pruning import CompletionPruning
from theory.toy import measured_weights

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from method_curves import max_variance_share
from method_rows import COPIES, METHODS, P, full

GRID = np.linspace(0.1, 0.9, len(P))
SETTINGS = {"steps": 3, "warm_up": 2, "runs": 32, "copies": COPIES}
KNOWN = [name for name, method in METHODS.items() if method.curve is not None]
ROUNDING = 5e-3
"""Where hardly anything is trained on, few of the runs saw it."""


@pytest.mark.parametrize("name", KNOWN)
def test_measured_weights_are_those_of_the_formula(name):
    """Four standard errors, at every p."""
    method = METHODS[name]
    arms = {"make_selector": method.make_selector, "estimator": method.estimator}
    measured = measured_weights(method.make, GRID, **arms, **SETTINGS)
    difference_P = np.abs(measured.weights_P - method.curve(measured))
    assert np.all(difference_P < 4 * measured.errors_P + ROUNDING)
    assert measured.errors_P.max() < 0.5
    assert measured.errors_P[len(P) // 2] < 0.15


def test_pods_with_the_standardised_advantages_of_the_paper():
    """The other formula of its docstring, for GRPO: ``E[sqrt(f (1 - f) (m - 1) / m)] / (p (1 - p))``."""
    method, n, m = METHODS["pods"], 16, 4
    measured = measured_weights(method.make, GRID, make_selector=method.make_selector, estimator="grpo", **SETTINGS)
    share_K = max_variance_share(np.arange(n + 1.0), n, m)
    step_P = binom.pmf(np.arange(n + 1), n, GRID[:, None]) @ np.sqrt(share_K * (1 - share_K) * (m - 1) / m)
    assert np.all(np.abs(measured.weights_P - step_P / (GRID * (1 - GRID))) < 4 * measured.errors_P)


@pytest.mark.parametrize("name", ["vip", "coba-rl", "knapsack", "inverse-accuracy"])
def test_if_rollouts_counted_alike_prompts_would_count_by_their_rollouts(name):
    """What keeps the objective of these methods is that prompts count alike; the measurement sees the difference."""
    measured = measured_weights(METHODS[name].make, GRID, aggregation="sequence_mean", **SETTINGS)
    share_P = measured.generated_P / measured.generated_P.mean()
    assert np.all(np.abs(measured.weights_P - share_P) < 4 * measured.errors_P)
    assert np.any(np.abs(measured.weights_P - 1) > 4 * measured.errors_P)


def completion_pruning(seed):
    return CompletionPruning(seed=seed)


@pytest.mark.parametrize("planner", ["vip", "dynamic-pruning"])
def test_combinations_that_keep_the_objective(planner):
    """The weights of a plan hold beside any selector."""
    measured = measured_weights(METHODS[planner].make, GRID, make_selector=completion_pruning, **SETTINGS)
    assert np.all(np.abs(measured.weights_P - 1) < 4 * measured.errors_P)
    assert np.all(measured.trained_P < measured.generated_P)


def test_pruning_by_size_instead_of_at_random_fails_this_test():
    """The deterministic variant that the paper's appendix describes: the weights are not 1."""
    measured = measured_weights(full(DynamicPruning, random=False), GRID, **SETTINGS)
    assert np.any(np.abs(measured.weights_P - 1) > 4 * measured.errors_P)
