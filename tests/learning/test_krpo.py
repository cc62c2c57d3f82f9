import math

import pytest
import torch
from batch_expectation import expected_gradient

from allotment.errors import ConfigError, InvalidInputError
from allotment.methods.objectives.krpo import KRPO


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def krpo(rewards_N, groups_N, **settings):
    return KRPO(**settings).advantages({"r": rewards_N}, groups_N)


def test_the_filter_by_hand():
    """Without process noise, variance 1 of the start and of a reward: gains 1/2, 1/3, 1/4, variances the same."""
    plain = {"process": 0.0, "measurement": 1.0, "variance": 1.0, "epsilon": 0.0}
    gains_I, scales_I = KRPO(**plain).filter(3)
    torch.testing.assert_close(f64(*gains_I), f64(1 / 2, 1 / 3, 1 / 4))
    torch.testing.assert_close(f64(*scales_I), f64(1 / 2, 1 / 3, 1 / 4).sqrt())
    advantages_N = krpo(f64(1, 0, 1), torch.zeros(3, dtype=torch.int64), **plain)  # means 1/2, 1/3, 1/2
    torch.testing.assert_close(advantages_N, f64(math.sqrt(0.5), -math.sqrt(1 / 3), 1.0))


def test_groups_start_anew_and_keep_the_order_of_their_rows():
    first, second = f64(1, 0, 1), f64(0, 1)
    together_N = krpo(f64(1, 0, 0, 1, 1), torch.tensor([7, 2, 7, 7, 2]))
    torch.testing.assert_close(together_N[[0, 2, 3]], krpo(first, torch.zeros(3, dtype=torch.int64)))
    torch.testing.assert_close(together_N[[1, 4]], krpo(second, torch.zeros(2, dtype=torch.int64)))


def test_the_first_rollout_hardly_counts_with_the_released_settings():
    first, second = krpo(f64(1, 1), torch.zeros(2, dtype=torch.int64)).tolist()
    assert first == pytest.approx(0.0995, abs=1e-4)  # (1 - 1/1.01) / sqrt(0.0099)
    assert second == pytest.approx(0.0705, abs=1e-4)  # it is taken to be known by then


def test_the_bias_by_hand():
    """With gains 1/2, 1/3 a prompt of two rollouts weighs (1/2 / sqrt(1/2) + 2/3 / sqrt(1/3)) / 2 in place of 1."""
    plain = {"process": 0.0, "measurement": 1.0, "variance": 1.0, "epsilon": 0.0}
    expected = (math.sqrt(1 / 2) + 2 / math.sqrt(3)) / 2
    assert KRPO(**plain).weight(2) == pytest.approx(expected)
    found_Q = expected_gradient(lambda r, g: krpo(r, g, **plain), [0.3], [2])
    torch.testing.assert_close(found_Q, f64(expected))


def test_biased_prompts_with_more_rollouts_weigh_more():
    """Exact over all outcomes: what p is does not matter, what n is does, so no learning rate makes up for it."""
    found_Q = expected_gradient(krpo, [0.2, 0.7, 0.2], [2, 2, 6])
    rule = KRPO()
    torch.testing.assert_close(found_Q, f64(rule.weight(2), rule.weight(2), rule.weight(6)))
    assert found_Q[2] > 3 * found_Q[0]
    assert rule.weight(32) / rule.weight(8) == pytest.approx(2, rel=0.15)  # about sqrt(n)


@pytest.mark.parametrize(
    "settings", [{"measurement": 0.0}, {"variance": -1.0}, {"process": -1e-9}, {"mean": math.nan}, {"epsilon": -1.0}]
)
def test_settings_without_meaning_are_refused(settings):
    with pytest.raises(ConfigError, match=f"krpo cannot have this {next(iter(settings))}"):
        KRPO(**settings)


def test_a_reward_that_is_no_number_is_refused():
    with pytest.raises(InvalidInputError, match="reward"):
        krpo(f64(1, math.inf), torch.zeros(2, dtype=torch.int64))
