"""Contextual rollout bandit, arXiv 2602.08499: its invariants, a synthetic environment."""

from dataclasses import replace

import numpy as np
import pytest
from selection_cases import bits, joined, permuted, random_scored, scored
from sklearn.neural_network import MLPRegressor

from allotment.errors import InvalidInputError, StateError
from allotment.methods.selectors.bandit_learning import Perceptron
from allotment.methods.selectors.contextual_bandit import (
    FEATURES,
    ContextualBandit,
    Level,
    arm_reward,
    rollout_features,
)
from allotment.selection import Selector, check_selection, emptied_groups
from allotment.state import load_state, save_state

GLOBAL = {"mode": "global", "window": 3}
MODES = [{}, GLOBAL]


def history(steps, seed=0, **columns):
    """The new rollouts of each step, of groups from 1 to 8; numbers are never used twice."""
    rng = np.random.default_rng(seed)
    return [random_scored(rng, step=t, first_number=100 * t, **columns) for t in range(1, steps + 1)]


def shown(parts, window):
    """What a selector sees after the last of ``parts``, with clip fractions of the older ones."""
    one = joined(*parts[-window:])
    return replace(one, clip_fractions_N=np.where(one.ages_Q[one.rows_N] > 0, 0.25, 0.0))


def run(bandit, parts, first=1):
    """The selections after each step from ``first`` on."""
    steps = [shown(parts[:t], bandit.window) for t in range(first, len(parts) + 1)]
    return [check_selection(bandit.select(one), one) for one in steps]


def test_buffer_holds_the_window_once_and_counts_every_use():
    parts = history(8)
    bandit, uses = ContextualBandit(**GLOBAL), {}
    for t in range(1, 9):
        one = shown(parts[:t], 3)
        kept_N = bandit.select(one).is_kept
        for number, kept in zip(one.numbers_N.tolist(), kept_N, strict=True):
            uses[number] = uses.get(number, 0) + int(kept)
        buffer = bandit.state_dict()["buffer"]
        assert dict(zip(buffer["numbers"], buffer["uses"], strict=True)) == {n: uses[n] for n in one.numbers_N.tolist()}
        assert len(buffer["numbers"]) == len(one)
        assert buffer["steps"].min() == max(t - 2, 1)
    assert max(uses.values()) > 1


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_intra_mode_keeps_the_rounded_up_share_of_every_group(share):
    parts = history(5)
    for part, selection in zip(parts, run(ContextualBandit(share=share), parts), strict=True):
        sizes_Q = np.bincount(part.rows_N)
        np.testing.assert_array_equal(np.bincount(part.rows_N, selection.is_kept), np.ceil(share * sizes_Q))
        assert emptied_groups(selection, part) == 0


@pytest.mark.parametrize("keep", [1, 10, 50, 10**6])
def test_global_mode_keeps_exactly_k_rollouts_or_all(keep):
    parts = history(6)
    bandit = ContextualBandit(**GLOBAL, keep=keep)
    for t, selection in enumerate(run(bandit, parts), start=1):
        one = shown(parts[:t], 3)
        assert selection.is_kept.sum() == min(keep, len(one))
        assert emptied_groups(selection, one) == len(set(one.rows_N) - set(one.rows_N[selection.is_kept]))


def test_both_modes_train_on_equally_many_by_default():
    parts = history(4, sizes=(8, 9))
    kept = [[s.is_kept.sum() for s in run(ContextualBandit(**mode), parts)] for mode in MODES]
    assert kept[0] == kept[1] == [24] * 4


@pytest.mark.parametrize("mode", MODES)
def test_what_comes_later_leaves_a_selection_unchanged(mode):
    parts = history(9)
    last = parts[-1]
    shuffled = np.random.default_rng(5).permutation(len(last))
    other = [*parts[:-1], replace(last, rewards_N=1 - last.rewards_N, entropies_N=last.entropies_N[shuffled])]
    one, two = ContextualBandit(**mode), ContextualBandit(**mode)
    chosen = [[s.weights_N.tobytes() for s in run(bandit, p)] for bandit, p in ((one, parts), (two, other))]
    assert chosen[0][:-1] == chosen[1][:-1]
    assert one.last_gain != two.last_gain


@pytest.mark.parametrize("mode", MODES)
def test_the_gains_telescope_and_come_one_step_late(mode):
    parts = history(7)
    bandit, gains = ContextualBandit(**mode, entropy_weight=0), []
    for t in range(1, 8):
        bandit.select(shown(parts[:t], bandit.window))
        gains.append(bandit.last_gain)
    values = [np.mean([part.rewards_N[part.rows_N == q].mean() for q in set(part.rows_N)]) for part in parts]
    assert gains[0] is None
    np.testing.assert_allclose(gains[1:], np.diff(values), atol=1e-12)
    assert sum(gains[1:]) == pytest.approx(values[-1] - values[0])


@pytest.mark.parametrize(
    ("entropy", "expected"), [(0.5, 0.25), (0.51, 0.25 - 2 * 0.49), (0.2, 0.25), (2.0, 0.25 + 2 * 1)]
)
def test_entropy_counts_only_above_its_floor(entropy, expected):
    before, after = Level(0.5, entropy), Level(0.75, 1.0)
    assert arm_reward(before, after, entropy_weight=2.0, entropy_floor=0.5) == pytest.approx(expected)


def test_advantages_come_from_whole_groups_and_selection_is_not_corrected_for():
    for selection in run(ContextualBandit(), history(3)):
        assert (selection.baseline, selection.denominator) == ("generated", "kept")
        assert selection.advantages_N is None
        assert set(selection.weights_N) <= {0.0, 1.0}


def regret(seed, steps=320, groups=8, n=8):
    """[steps] of a policy whose mean reward rises by the mean of a known function of what it is trained on."""
    rng, bandit, level, lost = np.random.default_rng(seed), ContextualBandit(entropy_weight=0, seed=seed), 0.0, []
    for t in range(1, steps + 1):
        entropies_N, lengths_N = rng.random(groups * n), rng.integers(1, 200, groups * n)
        gains_N = 0.04 * (entropies_N - 0.5) - 0.02 * (np.log1p(lengths_N) - 4.3)
        rewards = level + rng.normal(0, 0.02, (groups, n))
        numbers = np.arange(groups * n) + t * groups * n
        one = scored(rewards, step=t, numbers=numbers, entropies_N=entropies_N, lengths_N=lengths_N)
        gain = gains_N[bandit.select(one).is_kept].mean()
        best = np.sort(gains_N.reshape(groups, n), axis=1)[:, n // 2 :].mean()
        level += gain + rng.normal(0, 0.005)
        lost.append(best - gain)
    return np.array(lost)


def test_regret_grows_sublinearly_where_gain_is_a_function_of_the_features():
    lost = (regret(0) + regret(1)) / 2
    total = lost.cumsum()
    assert (lost >= 0).all()
    assert total[319] / total[19] < 0.6 * 320 / 20
    assert lost[-80:].mean() < 0.6 * lost[:40].mean()


def test_the_first_selection_is_by_lot_and_later_ones_explore_less():
    kept = sum(ContextualBandit(seed=seed).select(scored([[0, 1, 0, 1]])).is_kept for seed in range(400))
    assert (np.abs(kept - 200) < 4 * 10).all()

    def explored(t):
        steps = [
            random_scored(np.random.default_rng(i), groups=100, step=t + i, first_number=1000 * i) for i in (1, 2, 3)
        ]
        greedy, other = ContextualBandit(exploration=0), ContextualBandit(exploration=0)
        run(greedy, steps[:2])
        run(other, steps[:2])
        other.exploration = 1
        kept_N = greedy.select(steps[2]).is_kept
        return (kept_N & ~other.select(steps[2]).is_kept).sum() / kept_N.sum()

    assert explored(0) > 0.2 > 0.02 > explored(10**4)


@pytest.mark.parametrize("mode", MODES)
def test_the_unit_of_the_reward_does_not_matter(mode):
    def chosen(unit):  # a power of two, so that no bit changes
        parts = history(12, rewards=lambda rng, n: unit * rng.random(n))
        return [s.weights_N.tobytes() for s in run(ContextualBandit(**mode, entropy_weight=0), parts)]

    assert chosen(1) == chosen(64)


def test_ten_features_by_name():
    one = scored([[0, 1], [1]], step=5, ages=[2, 0], progress=0.3, truncated_N=np.array([True, False, False]))
    features_NF = rollout_features(one, np.array([3, 0, 0]))
    by_name = dict(zip(FEATURES, features_NF.T.tolist(), strict=True))
    assert len(by_name) == 10
    assert by_name == {
        "reward": [0, 1, 1],
        "entropy": [1, 1, 1],
        "clip_fraction": [0, 0, 0],
        "log_length": pytest.approx([np.log(11)] * 3),
        "truncated": [1, 0, 0],
        "age": [2, 2, 0],
        "uses": [3, 0, 0],
        "advantage": [-1, 1, 0],
        "group_reward": [0.5, 0.5, 1],
        "progress": [0.3, 0.3, 0.3],
    }


def test_the_perceptron_does_the_sums_of_scikit_learn():
    rng = np.random.default_rng(0)
    x_NF, y_N = rng.normal(size=(64, 10)), rng.normal(size=64)
    own = Perceptron(10, 7, learning_rate=0.01, seed=3)
    own.update(x_NF, y_N)  # away from the zeros it starts with
    settings = {"hidden_layer_sizes": (7,), "alpha": 0, "batch_size": 64, "learning_rate_init": 0.01, "shuffle": False}
    theirs = MLPRegressor(**settings).partial_fit(x_NF, y_N)
    w_FH, b_H, v_H, c = (own.state_dict()["parameters"][str(i)] for i in range(4))
    theirs.coefs_, theirs.intercepts_ = [w_FH, v_H[:, None]], [b_H, c]
    fresh = Perceptron(10, 7, learning_rate=0.01, seed=3).state_dict()
    own.load_state_dict({**fresh, "parameters": own.state_dict()["parameters"]})
    del theirs._optimizer  # it starts anew with the next call, as ours does here
    for _ in range(30):
        own.update(x_NF, y_N)
        theirs.partial_fit(x_NF, y_N)
    np.testing.assert_allclose(own.predict(x_NF), theirs.predict(x_NF), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_the_order_of_the_batch_does_not_matter(mode):
    parts = history(7)
    one, two = ContextualBandit(**mode), ContextualBandit(**mode)
    for t in range(1, 8):
        seen = shown(parts[:t], one.window)
        order = np.random.default_rng(t).permutation(len(seen))
        weights_N = one.select(seen).weights_N
        np.testing.assert_array_equal(two.select(permuted(seen, order)).weights_N, weights_N[order])
    assert bits(one.state_dict()) == bits(two.state_dict())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("at", [0, 1, 6])
def test_resumes_bit_for_bit_from_a_file(mode, at, tmp_path):
    parts = history(12)
    whole, first = ContextualBandit(**mode, seed=4), ContextualBandit(**mode, seed=4)
    expected = run(whole, parts)
    run(first, parts[:at])
    save_state(tmp_path / "state", first.state_dict(), kind="selector")
    second = ContextualBandit(**mode, seed=4)
    second.load_state_dict(load_state(tmp_path / "state", kind="selector"))
    for one, other in zip(expected[at:], run(second, parts, at + 1), strict=True):
        assert one.weights_N.tobytes() == other.weights_N.tobytes()
    assert bits(whole.state_dict()) == bits(second.state_dict())
    assert isinstance(second, Selector)


def foreign(one):
    """Ways in which rollouts of another run differ from those of the buffer."""
    old_N = one.ages_Q[one.rows_N] > 0
    return {
        "unknown number": replace(one, numbers_N=one.numbers_N + 10**6 * old_N),
        "another reward": replace(one, rewards_N=one.rewards_N + old_N),
        "another step": replace(one, ages_Q=np.where(one.ages_Q == 1, 2, one.ages_Q)),
        "new ones known": replace(one, ages_Q=np.zeros_like(one.ages_Q)),
        "a step done": replace(one, step=one.step - 1),
    }


@pytest.mark.parametrize("what", list(foreign(shown(history(2), 3))))
def test_a_buffer_of_another_run_is_refused_and_nothing_changes(what):
    parts = history(4)
    bandit = ContextualBandit(**GLOBAL)
    run(bandit, parts[:3])
    before = bits(bandit.state_dict())
    with pytest.raises(StateError, match=r"buffer|behind"):
        bandit.select(foreign(shown(parts, 3))[what])
    assert bits(bandit.state_dict()) == before


def test_a_fresh_bandit_refuses_old_rollouts():
    with pytest.raises(StateError, match="run of this buffer"):
        ContextualBandit(**GLOBAL).select(shown(history(3), 3))


@pytest.mark.parametrize("mode", MODES)
def test_rollouts_older_than_the_buffer_are_counted_and_left_out(mode):
    parts = history(6)
    bandit, same = ContextualBandit(**mode), ContextualBandit(**mode)
    expected = run(same, parts)[-1]
    run(bandit, parts[:5])
    one = shown(parts, bandit.window + 2)
    weights_N = bandit.select(one).weights_N
    old = len(one) - len(expected.weights_N)
    assert (bandit.too_old, weights_N[:old].sum()) == (old, 0)
    np.testing.assert_array_equal(weights_N[old:], expected.weights_N)


def test_a_gap_in_the_history_credits_nobody_and_is_counted():
    parts = history(5)
    bandit = ContextualBandit()
    for t in (1, 2, 4, 5):
        bandit.select(parts[t - 1])
        assert (bandit.last_gain is None) == (t in (1, 4))
    assert bandit.missed_steps == 1
    assert set(bandit.state_dict()["regressor"]["steps"]) == {1.0, 4.0}


@pytest.mark.parametrize("mode", MODES)
def test_a_step_without_rollouts_loses_nothing(mode):
    bandit = ContextualBandit(**mode)
    bandit.select(history(1)[0])
    assert len(bandit.select(scored([], step=2)).weights_N) == 0
    assert (bandit.missed_steps, bandit.last_gain) == (1, None)
    bandit.select(history(3)[2])


@pytest.mark.parametrize(
    ("change", "match"),
    [({"numbers_N": np.array([3, 3, 1])}, "twice"), ({"entropies_N": np.array([1, np.nan, 1])}, "entropy")],
)
def test_rollouts_that_cannot_be_used_change_nothing(change, match):
    bandit = ContextualBandit()
    before = bits(bandit.state_dict())
    with pytest.raises(InvalidInputError, match=match):
        bandit.select(replace(scored([[0, 1, 1]]), **change))
    assert bits(bandit.state_dict()) == before


@pytest.mark.parametrize(
    "settings",
    [
        *({"mode": "x"}, {"window": 2}, {"keep": 5}, {"mode": "global", "window": 0}, {"mode": "global", "keep": 0.5}),
        *({"share": 0}, {"share": 1.1}, {"entropy_weight": -1}, {"entropy_floor": np.nan}, {"exploration": 2}),
        *({"hidden": 0}, {"learning_rate": 0}),
    ],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(InvalidInputError, match=list(settings)[-1]):
        ContextualBandit(**settings)


def test_a_state_that_does_not_fit_is_refused_and_nothing_changes():
    bandit, other = ContextualBandit(**GLOBAL), ContextualBandit(**GLOBAL, seed=1)
    run(bandit, history(4))
    good, before = bits(bandit.state_dict()), other.state_dict()
    buffer = {**good["buffer"], "uses": good["buffer"]["uses"][1:]}
    bad = [good, {**good, "kind": "PODS"}, {k: v for k, v in good.items() if k != "buffer"}]
    for state in [*bad, {**good, "settings": before["settings"], "buffer": buffer}]:
        with pytest.raises(StateError):
            other.load_state_dict(state)
        assert bits(other.state_dict()) == bits(before)
