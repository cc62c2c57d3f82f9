import itertools
import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from allotment.errors import ConfigError, InvalidInputError
from allotment.integrations.trl.advantages import gdpo_advantages as trl_gdpo_advantages
from allotment.learning import dr_grpo_advantages, grpo_advantages
from allotment.methods.objectives.gdpo import GDPO

TINY = 1e-12
EXACT = GDPO(whiten="none", epsilon=TINY)
"""Without what keeps denominators off 0."""


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def named(*columns):
    return {f"r{k}": f64(*column) for k, column in enumerate(columns)}


def close(actual, expected, tolerance=1e-6):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=torch.float64), atol=tolerance, rtol=0)


def on_the_sum(rewards, groups, epsilon=TINY):
    return grpo_advantages(torch.stack(list(rewards.values())).sum(0), groups, epsilon)


@st.composite
def batches(draw, least=1):
    """Named rewards of ragged, interleaved groups."""
    sizes = draw(st.lists(st.integers(least, 5), min_size=1, max_size=4))
    groups = draw(st.permutations([q for q, n in enumerate(sizes) for _ in range(n)]))
    value = st.sampled_from([0.0, 1.0, 0.5, -3.0])
    column = st.lists(value, min_size=len(groups), max_size=len(groups))
    return named(*draw(st.lists(column, min_size=1, max_size=4))), torch.tensor(groups)


# Fixtures of the sheet


@pytest.mark.parametrize(
    ("second", "gdpo"), [([(0, 0), (0, 1)], 0.7071), ([(0, 0), (1, 1)], 1.4142), ([(0, 1), (1, 1)], 0.7071)]
)
def test_two_binary_rewards_two_rollouts(second, gdpo):
    """Totals (0, 1), (0, 2), (1, 2): GRPO cannot tell them apart, GDPO tells one from two rewards gained."""
    rewards, groups = named(*zip(*second, strict=True)), torch.zeros(2, dtype=torch.int64)
    close(on_the_sum(rewards, groups), [-0.7071, 0.7071], 1e-4)
    close(EXACT.advantages(rewards, groups), [-gdpo, gdpo], 1e-4)


def test_two_prompts_before_and_after_the_batch():
    rewards, groups = named((0, 1, 0, 1), (0, 0, 0, 1)), torch.tensor([0, 0, 1, 1])
    close(EXACT.advantages(rewards, groups), [-(0.5**0.5), 0.5**0.5, -(2**0.5), 2**0.5])
    whitened = GDPO(epsilon=TINY).advantages(rewards, groups)
    close(whitened, [-(0.3**0.5), 0.3**0.5, -(1.2**0.5), 1.2**0.5])
    close(whitened, [-0.5477, 0.5477, -1.0954, 1.0954], 1e-4)


@pytest.mark.parametrize(
    ("rewards", "rollouts", "expected"),
    [
        (2, 2, (2, 3, 3)),
        (2, 3, (4, 6, 6)),
        (2, 4, (7, 10, 14)),
        (2, 5, (11, 15, 26)),
        (3, 2, (2, 4, 4)),
        (3, 3, (6, 10, 10)),
        (3, 4, (14, 20, 45)),
    ],
)
def test_distinct_advantages_over_all_binary_patterns(rewards, rollouts, expected):
    """GRPO on the sum, the same without standard deviation, GDPO; a group for each pattern."""
    patterns = f64(*itertools.product((0.0, 1.0), repeat=rewards * rollouts)).view(-1, rollouts, rewards)
    groups = torch.arange(len(patterns)).repeat_interleave(rollouts)
    columns = {str(k): patterns[:, :, k].flatten() for k in range(rewards)}
    total = patterns.sum(-1).flatten()

    def distinct(advantages_N):
        rows = advantages_N.view(-1, rollouts).sort(1).values.mul(1e6).round()
        return len({tuple(row) for row in (rows + 0.0).tolist()})

    results = (
        grpo_advantages(total, groups, TINY),
        dr_grpo_advantages(total, groups),
        EXACT.advantages(columns, groups),
    )
    assert tuple(map(distinct, results)) == expected


# Invariants


@given(batches(least=2), st.data())
def test_units_of_a_reward_do_not_matter_within_a_group(batch, data):
    """Separately for each reward and each group."""
    rewards, groups = batch
    moved = {}
    for name, reward in rewards.items():
        draw = st.lists(st.floats(0.1, 10), min_size=5, max_size=5)
        scale, shift = f64(*data.draw(draw))[groups], f64(*data.draw(draw))[groups]
        moved[name] = scale * reward - shift
    plain = GDPO(whiten="none", epsilon=TINY)
    close(plain.advantages(moved, groups), plain.advantages(rewards, groups))
    assume(plain.advantages(rewards, groups).abs().max() > 1e-6)  # else whitening blows up what rounding left
    whitened = GDPO(whiten="rollouts", epsilon=TINY)
    close(whitened.advantages(moved, groups), whitened.advantages(rewards, groups))


def test_units_of_a_reward_matter_to_the_sum():
    rewards, groups = named((0, 0, 1, 1), (0, 1, 0, 1)), torch.zeros(4, dtype=torch.int64)
    moved = rewards | {"r1": 3 * rewards["r1"]}
    assert (on_the_sum(rewards, groups) - on_the_sum(moved, groups)).abs().max() > 0.4
    close(EXACT.advantages(moved, groups), EXACT.advantages(rewards, groups))


@given(batches(), st.sampled_from([0.0, 0.1, 1e6 + 0.1]))
def test_a_reward_that_is_constant_within_groups_says_exactly_nothing(batch, value):
    rewards, groups = batch
    constant = {"constant": value + groups.double()}
    for gdpo in (GDPO(whiten="none"), GDPO()):
        assert (gdpo.advantages(constant, groups) == 0).all()
        assert torch.equal(gdpo.advantages(rewards | constant, groups), gdpo.advantages(rewards, groups))


@pytest.mark.parametrize("whiten", ["rollouts", "none"])
def test_groups_of_one_and_groups_of_equal_rewards_have_exactly_no_advantage(whiten):
    groups = torch.tensor([0, 1, 1, 1, 2, 2, 2])
    rewards = named((1, 0, 1, 1, 0.1, 0.1, 0.1), (5, 0.3, 0.2, 0.1, 1 / 3, 1 / 3, 1 / 3))
    advantages = GDPO(whiten=whiten).advantages(rewards, groups)
    assert advantages[[0, 4, 5, 6]].tolist() == [0] * 4
    assert (advantages[1:4] != 0).all()
    assert GDPO(whiten=whiten).advantages(named((1,), (2,)), torch.tensor([7])).tolist() == [0]


@given(batches())
def test_after_whitening_mean_is_0_and_deviation_1_in_the_same_order(batch):
    rewards, groups = batch
    total, whitened = EXACT.advantages(rewards, groups), GDPO(epsilon=TINY).advantages(rewards, groups)
    close(total.mean(), 0.0)  # of itself: nothing is to be subtracted
    if total.abs().max() > 1e-9:
        close(whitened.mean(), 0.0)
        close(whitened.std(), 1.0)
        close(whitened * total.std(), total)


@given(batches(least=2))
def test_one_reward_is_grpo_and_with_one_group_up_to_a_scale(batch):
    rewards, groups = batch
    one = {"r0": rewards["r0"]}
    assert torch.equal(GDPO(whiten="none").advantages(one, groups), grpo_advantages(one["r0"], groups))
    alone = torch.zeros_like(groups)
    ours, grpo = GDPO().advantages(one, alone), grpo_advantages(one["r0"], alone)
    close(ours * grpo.norm(), grpo * ours.norm())


@given(st.lists(st.sampled_from([0.0, 1.0, 0.25, 2.0]), min_size=1, max_size=6))
def test_two_rewards_of_constant_sum_cancel(values):
    rewards, groups = named(values, [3 - v for v in values]), torch.zeros(len(values), dtype=torch.int64)
    close(on_the_sum(rewards, groups), [0.0] * len(values))
    close(EXACT.advantages(rewards, groups), [0.0] * len(values))


def test_three_rewards_of_constant_sum_need_not_cancel():
    rewards, groups = named((1, 0, 0, 0), (0, 1, 1, 0), (0, 0, 0, 1)), torch.zeros(4, dtype=torch.int64)
    assert (on_the_sum(rewards, groups) == 0).all()
    a = 1 - 0.75**0.5
    close(EXACT.advantages(rewards, groups), [a, -a, -a, a])


@given(batches(least=2))
def test_it_is_what_trl_computes(batch):
    rewards, groups = batch
    columns = torch.stack(list(rewards.values()), 1)
    weights = {name: 0.5 + k for k, name in enumerate(rewards)}
    expected = trl_gdpo_advantages(columns, f64(*weights.values()), groups)
    close(GDPO(weights=weights).advantages(rewards, groups), expected)


@given(batches(), st.data())
def test_whitening_over_tokens_is_verls(batch, data):
    rewards, groups = batch
    lengths = data.draw(st.lists(st.integers(0, 7), min_size=len(groups), max_size=len(groups)))
    total = EXACT.advantages(rewards, groups)
    advantages = GDPO(whiten="tokens", epsilon=TINY).advantages(rewards, groups, torch.tensor(lengths))
    tokens = total.repeat_interleave(torch.tensor(lengths))
    if len(tokens) > 1:  # masked_whiten
        close(advantages, (total - tokens.mean()) / (tokens.var() + 1e-8).sqrt())
    assert advantages.isfinite().all()


def test_equal_lengths_whiten_alike_up_to_the_count():
    rewards, groups = named((0, 0, 0, 1, 1), (0, 1, 0, 1, 0)), torch.tensor([0, 0, 1, 1, 1])
    over_tokens = GDPO(whiten="tokens", epsilon=TINY).advantages(rewards, groups, torch.full((5,), 3))
    over_rollouts = GDPO(epsilon=TINY).advantages(rewards, groups)
    close(over_tokens, over_rollouts * math.sqrt((5 / 4) / (15 / 14)))


# Weights and conditions


def test_weights_act_on_standardised_values():
    rewards, groups = named((0, 0, 1, 1), (0, 100, 0, 100)), torch.zeros(4, dtype=torch.int64)
    z = 0.75**0.5  # of two zeros and two ones
    advantages = GDPO(weights={"r1": 0.1}, whiten="none", epsilon=TINY).advantages(rewards, groups)
    close(advantages, [-1.1 * z, -0.9 * z, 0.9 * z, 1.1 * z])


@given(batches())
def test_a_weight_of_0_leaves_a_reward_out(batch):
    rewards, groups = batch
    doubled = rewards | {"more": rewards["r0"].flip(0)}
    close(GDPO(weights={"more": 0.0}).advantages(doubled, groups), GDPO().advantages(rewards, groups))


@pytest.mark.parametrize(("threshold", "counts"), [(1.0, (0, 0, 1, 1)), (0.5, (0, 1, 1, 1)), (2.0, (0, 0, 0, 1))])
def test_a_condition_lets_a_reward_count_where_another_is_reached(threshold, counts):
    hard, easy = (0.0, 0.5, 1.0, 3.0), (5.0, 6.0, 7.0, 8.0)
    groups = torch.zeros(4, dtype=torch.int64)
    conditioned = GDPO(conditions={"r1": "r0"}, threshold=threshold).advantages(named(hard, easy), groups)
    by_hand = GDPO().advantages(named(hard, [e * c for e, c in zip(easy, counts, strict=True)]), groups)
    close(conditioned, by_hand)


def test_a_condition_asks_the_reward_as_it_was_given():
    """Also where that reward is itself conditioned: a chain has no order."""
    rewards, groups = named((0, 0, 1, 1), (1, 1, 1, 0), (0, 1, 1, 1)), torch.zeros(4, dtype=torch.int64)
    advantages = GDPO(conditions={"r1": "r0", "r2": "r1"}).advantages(rewards, groups)
    close(advantages, GDPO().advantages(named((0, 0, 1, 1), (0, 0, 1, 0), (0, 1, 1, 0)), groups))


# Refusals


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("conditions", [{}, {"r1": "r0"}])
def test_a_reward_that_is_not_finite_is_named(value, conditions):
    """Also where a condition would hide it."""
    rewards, groups = named((0, 1), (value, 1)), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(InvalidInputError, match=r"(?s)'r1' cannot be used.*1 not finite"):
        GDPO(conditions=conditions).advantages(rewards, groups)


def test_a_reward_of_other_rollouts_is_named():
    with pytest.raises(InvalidInputError, match=r"(?s)'r1' cannot be used.*shape \(3,\)"):
        GDPO().advantages(named((0, 1), (0, 1, 1)), torch.zeros(2, dtype=torch.int64))


def test_names_that_change_between_batches_are_refused():
    gdpo, groups = GDPO(rewards=("r0", "r1")), torch.zeros(2, dtype=torch.int64)
    gdpo.advantages(named((0, 1), (1, 0)), groups)
    for other in (named((0, 1)), named((0, 1), (1, 0), (1, 1)), {"r0": f64(0, 1), "r2": f64(1, 0)}):
        with pytest.raises(InvalidInputError, match="not those of the settings"):
            gdpo.advantages(other, groups)


def test_nothing_to_combine_is_refused():
    with pytest.raises(InvalidInputError, match="no reward"):
        GDPO().advantages({}, torch.zeros(2, dtype=torch.int64))
    with pytest.raises(InvalidInputError, match="no lengths"):
        GDPO(whiten="tokens").advantages(named((0, 1)), torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize("setting", [{"weights": {"x": 1}}, {"conditions": {"x": "r0"}}, {"conditions": {"r0": "x"}}])
def test_a_setting_that_names_no_reward_is_refused(setting):
    with pytest.raises(ConfigError, match=r"(?s)'x'.*r0"):
        GDPO(**setting).advantages(named((0, 1)), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ConfigError, match=r"(?s)'x'.*r0"):
        GDPO(rewards=("r0",), **setting)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"whiten": True}, "whitening"),
        ({"epsilon": 0.0}, "epsilon"),
        ({"epsilon": math.inf}, "epsilon"),
        ({"weights": {"r0": math.nan}}, "weight"),
    ],
)
def test_settings_that_cannot_be_are_refused(setting, message):
    with pytest.raises(ConfigError, match=message):
        GDPO(**setting)


def test_advantages_carry_no_gradient_and_keep_float32():
    reward = torch.tensor([0.0, 1.0], requires_grad=True)
    for whiten in ("rollouts", "none"):
        advantages = GDPO(whiten=whiten).advantages({"a": reward, "b": torch.tensor([1, 0])}, torch.tensor([0, 0]))
        assert not advantages.requires_grad
        assert advantages.dtype == torch.float32
