"""The baselines of PODS, and what "so many of every ragged group" means."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from selection_cases import kept_of, permuted, random_scored, scored

from allotment.errors import InvalidInputError, StateError
from allotment.methods.selectors.subsets import PODS, MaxReward, RandomSubset, first_of_groups, kept_counts
from allotment.selection import Selector, emptied_groups

CLASSES = [MaxReward, RandomSubset, PODS]


@pytest.mark.parametrize(
    ("keep", "sizes", "kept"),
    [(4, [64, 4, 3, 1, 0], [4, 4, 3, 1, 0]), (0.25, [64, 30, 8, 3, 1, 0], [16, 8, 2, 2, 1, 0]), (0.07, [100], [7])],
)
def test_kept_counts_by_hand(keep, sizes, kept):
    assert kept_counts(keep, np.array(sizes)).tolist() == kept


@given(st.lists(st.integers(0, 6), min_size=1, max_size=6), st.randoms(use_true_random=False), st.data())
def test_first_of_groups_is_a_sort_of_every_group(sizes, random, data):
    rows_N = np.repeat(np.arange(len(sizes)), sizes)
    random.shuffle(rows_N)
    keys_N2 = np.array([[random.randrange(3), random.random()] for _ in rows_N]).reshape(-1, 2)
    room_Q = np.array(data.draw(st.lists(st.integers(0, 6), min_size=len(sizes), max_size=len(sizes))))
    chosen_N = first_of_groups(rows_N, room_Q, *keys_N2.T)
    for q, room in enumerate(room_Q):
        members = sorted(np.flatnonzero(rows_N == q), key=lambda i: tuple(keys_N2[i]))
        assert np.flatnonzero(chosen_N & (rows_N == q)).tolist() == sorted(members[:room])


@pytest.mark.parametrize("kind", CLASSES)
def test_every_group_keeps_what_it_should_whatever_the_order(kind):
    one = random_scored(np.random.default_rng(0), groups=20)
    order = np.random.default_rng(1).permutation(len(one))
    for selector in (kind(keep=3, seed=5), kind(keep=0.5, seed=5)):
        selection = selector.select(one)
        kept_Q = np.bincount(one.rows_N, selection.is_kept)
        np.testing.assert_array_equal(kept_Q, kept_counts(selector.keep, np.bincount(one.rows_N)))
        assert emptied_groups(selection, one) == 0
        assert (selection.baseline, selection.denominator) == ("kept", "kept")
        np.testing.assert_array_equal(selector.select(permuted(one, order)).weights_N, selection.weights_N[order])


def test_max_reward_keeps_the_largest():
    one = scored([[0.3, 0.9, 0.1, 0.5], [1, 1, 0], [-1, -2, -3]])
    assert kept_of(MaxReward(keep=2).select(one), one) == [[0.5, 0.9], [1, 1], [-2, -1]]


def test_a_random_subset_takes_every_rollout_equally_often():
    kept = sum(RandomSubset(keep=2).select(scored([[0, 1, 0, 1, 1]], step=t)).is_kept for t in range(1, 1001))
    assert (np.abs(kept - 400) < 4 * np.sqrt(240)).all()


@pytest.mark.parametrize("kind", CLASSES)
def test_the_lot_is_a_function_of_seed_step_and_rollout(kind):
    def kept(seed, step):
        return kind(keep=4, seed=seed).select(scored([[0.0] * 32], step=step)).is_kept.tolist()

    assert kept(0, 1) == kept(0, 1)
    assert kept(0, 1) != kept(0, 2)
    assert kept(0, 1) != kept(1, 1)


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("keep", [1, 0, -2, 1.5, 1.0, float("nan"), float("inf"), True, "4"])
def test_a_group_of_one_and_other_nonsense_is_refused(kind, keep):
    with pytest.raises(InvalidInputError, match="keep"):
        kind(keep=keep)


@pytest.mark.parametrize("kind", CLASSES)
def test_a_step_without_rollouts_has_an_empty_selection(kind):
    assert len(kind().select(scored([])).weights_N) == 0


@pytest.mark.parametrize("kind", CLASSES)
def test_is_a_selector_without_memory(kind):
    selector = kind(keep=2)
    assert isinstance(selector, Selector)
    selector.load_state_dict(selector.state_dict())
    with pytest.raises(StateError, match="kind"):
        selector.load_state_dict({"kind": "Other"})
