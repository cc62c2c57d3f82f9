"""Closed forms of the effective weight against the exact expectation over every outcome."""

import numpy as np
import pytest

from allotment.learning.effective import effective_weights
from allotment.report.weights import ALTERNATIVES, relative_weights


@pytest.mark.parametrize("choice", ALTERNATIVES, ids=lambda choice: choice.name)
def test_closed_forms_are_the_exact_weights(choice):
    p_Q, n_Q = np.array([0.02, 0.1, 0.25, 0.5, 0.75, 0.97]), np.array([4, 8, 10, 12, 2, 32])
    for aggregation in ("sequence_mean", "token_mean") if choice.by_rollouts else ("prompt_mean",):
        exact_Q = effective_weights(p_Q, n_Q, choice.advantage, aggregation)
        np.testing.assert_allclose(relative_weights(p_Q, n_Q, choice), exact_Q / exact_Q.mean(), rtol=1e-6)


def test_a_single_rollout_has_no_weight():
    for choice in ALTERNATIVES:
        assert relative_weights(np.array([0.3, 0.3]), np.array([1, 8]), choice).tolist() == [0, 2]
