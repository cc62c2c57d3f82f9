"""Weights of prompts, and the prices built from them."""

import numpy as np
import pytest

from allotment.checks import check_vector
from allotment.errors import InvalidInputError
from allotment.pricing import (
    DR_GRPO,
    RLOO,
    Price,
    TablePrice,
    WeightedPrice,
    bernoulli_weights,
    posterior_weights,
)
from allotment.types import Posterior


def test_bernoulli_weights():
    assert bernoulli_weights([0, 0.5, 1, 0.25]).tolist() == [0.0, 0.25, 0.0, 0.1875]


def test_uncertainty_lowers_the_weight_of_a_middling_prompt_and_raises_that_of_a_sure_one():
    posterior = Posterior(mean=np.array([0.0, 5.0]), variance=np.array([4.0, 4.0]))
    expected, plug_in = posterior_weights(posterior), posterior_weights(posterior, plug_in=True)
    assert plug_in[0] == 0.25
    assert expected[0] < plug_in[0]
    assert expected[1] > plug_in[1]


def test_certain_posterior_weighs_as_its_mean():
    posterior = Posterior(mean=np.array([-1.0, 2.0]), variance=np.zeros(2))
    np.testing.assert_allclose(posterior_weights(posterior), posterior_weights(posterior, plug_in=True), rtol=1e-12)


@pytest.mark.parametrize("bad", [float("nan"), -0.1, 1.5, float("inf")])
def test_bad_probability_names_index_and_value(bad):
    with pytest.raises(InvalidInputError, match=rf"(?s)prompt 2 .*{bad} at index 2"):
        bernoulli_weights([0.1, 0.2, bad, 0.3])


@pytest.mark.parametrize("bad", [[], [[0.1, 0.2]], 0.5, ["a"], [[0.1], [0.2, 0.3]]])
def test_bad_shapes_and_types(bad):
    with pytest.raises(InvalidInputError):
        check_vector("weight", bad)


@pytest.mark.parametrize("estimator", [RLOO, DR_GRPO], ids=lambda e: e.name)
def test_table_price_agrees_with_weighted_price(estimator):
    weights, grid = np.array([0.25, 0.0, 0.1]), np.arange(3, 11)
    weighted = WeightedPrice(weights, estimator)
    table = TablePrice(weights[:, None] * estimator.variance(np.arange(3, 12)), minimum_count=3)
    assert isinstance(weighted, Price)
    assert isinstance(table, Price)
    assert len(table) == len(weighted) == 3
    np.testing.assert_allclose(table.gains(grid), weighted.gains(grid), atol=1e-16)
    counts = np.array([3, 11, 5])
    np.testing.assert_array_equal(table.cost(counts), weighted.cost(counts))


def test_table_price_refuses_counts_outside_the_table():
    table = TablePrice(np.zeros((2, 4)), minimum_count=3)
    with pytest.raises(InvalidInputError, match="3 to 6"):
        table.cost(np.array([3, 7]))
    with pytest.raises(InvalidInputError, match="3 to 6"):
        table.cost(np.array([2, 4]))
    with pytest.raises(InvalidInputError, match="3 to 6"):
        table.gains(np.arange(3, 7))
    with pytest.raises(InvalidInputError, match=r"\[Q, K\]"):
        TablePrice(np.zeros(4), minimum_count=3)
