"""Majority pseudo-labels (TTRL; OptPO, arXiv 2512.02882): who leads, what that rewards, and what it optimises."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom
from selection_cases import permuted, scored

from allotment.errors import InvalidInputError
from allotment.methods.planners.optpo import PseudoLabels, Tally

ANSWERS = st.lists(st.lists(st.sampled_from(["4", "5", "7", None]), min_size=1, max_size=9), min_size=1, max_size=5)


def voted(groups, **columns):
    """Scored rollouts with these answers, all of them verified as wrong."""
    answers = tuple(a for group in groups for a in group)
    return scored([[0] * len(group) for group in groups], answers_N=answers, **columns)


def shuffled(one, order):
    return permuted(one, order), tuple(one.answers_N[i] for i in order)


def test_rewards_by_hand():
    """Two for 7 against one for 5 and one without answer; a tie, which the first to come wins; no answer at all."""
    one = voted([["7", None, "5", "7"], ["3", "9", "9", "3"], [None, None]])
    selection = PseudoLabels().select(one)
    assert selection.rewards_N.tolist() == [1, 0, 0, 1, 1, 0, 0, 1, 0, 0]
    assert selection.advantages_N is None
    assert selection.weights_N.tolist() == [1] * 10
    assert (selection.baseline, selection.denominator) == ("kept", "kept")


def test_the_first_rollouts_are_retained_and_all_of_them_vote():
    one = voted([["7", "7", "5", "5", "5"], ["1", "2"]], numbers=[10, 11, 12, 13, 14, 1, 0])
    selection = PseudoLabels(retained=3).select(one)
    assert selection.weights_N.tolist() == [1, 1, 1, 0, 0, 1, 1]
    assert selection.rewards_N.tolist() == [0, 0, 1, 1, 1, 0, 1]


@given(groups=ANSWERS, seed=st.integers(0, 99))
def test_the_leader_has_most_votes_and_came_first_among_equals(groups, seed):
    """Whatever the order of the batch: among equals the lowest number decides."""
    one = voted(groups)
    order = np.random.default_rng(seed).permutation(len(one))
    moved, answers = shuffled(one, order)
    moved = type(moved)(**{**vars(moved), "answers_N": answers})
    expected = []
    for group in groups:
        counts = Counter(a for a in group if a is not None)
        leader = counts.most_common(1)[0][0] if counts else "nobody"  # the first inserted among equals
        expected += [float(a == leader) for a in group]
    np.testing.assert_array_equal(PseudoLabels().select(one).rewards_N, expected)
    np.testing.assert_array_equal(PseudoLabels().select(moved).rewards_N, np.array(expected)[order])


@given(groups=ANSWERS)
def test_names_of_answers_and_verified_rewards_do_not_matter(groups):
    """Only who agrees with whom counts."""
    one = voted(groups)
    names = {"4": "x", "5": "", "7": "4", None: None}
    renamed = voted([[names[a] for a in group] for group in groups])
    paid = type(one)(**{**vars(one), "rewards_N": 1 - one.rewards_N})
    expected = PseudoLabels().select(one).rewards_N
    np.testing.assert_array_equal(PseudoLabels().select(renamed).rewards_N, expected)
    np.testing.assert_array_equal(PseudoLabels().select(paid).rewards_N, expected)


@given(groups=ANSWERS)
def test_tally(groups):
    one = voted(groups)
    tally = Tally.of(one.answers_N, one.rows_N, len(groups))
    counts = [sorted(Counter(a for a in group if a is not None).values(), reverse=True) for group in groups]
    assert tally.classes_Q.tolist() == [len(c) for c in counts]
    assert tally.first_Q.tolist() == [[*c, 0][0] for c in counts]
    assert tally.second_Q.tolist() == [[*c, 0, 0][1] for c in counts]


@pytest.mark.parametrize("n", [4, 15])
@pytest.mark.parametrize("p", [0.2, 0.5, 0.8])
def test_with_two_answers_the_weight_of_grad_p_is_the_sign_of_the_majority(n, p):
    """RLOO advantages of pseudo-rewards, by the mean score of each class; a tie is decided by who came first."""
    total = 0.0
    for k in range(n + 1):
        answers = ["right"] * k + ["wrong"] * (n - k)
        found = []
        for first in ("right", "wrong"):
            numbers = np.arange(n) if first == "right" else np.arange(n)[::-1].copy()
            selection = PseudoLabels().select(voted([answers], numbers=numbers))
            advantages = (selection.rewards_N - selection.rewards_N.mean()) * n / (n - 1)
            found.append((advantages * np.where(np.arange(n) < k, 1 / p, -1 / (1 - p))).mean())
        total += binom.pmf(k, n, p) * np.mean(found)
    k = np.arange(n + 1)
    formula = (binom.pmf(k, n, p) * np.sign(2 * k - n) * k * (n - k)).sum() / (n * (n - 1) * p * (1 - p))
    assert total == pytest.approx(formula, abs=1e-12)
    assert abs(formula) < 1
    assert np.sign(np.round(formula, 9)) == np.sign(p - 0.5)


def test_refused():
    with pytest.raises(InvalidInputError, match="retained"):
        PseudoLabels(retained=1)
    with pytest.raises(InvalidInputError, match="no answers"):
        PseudoLabels().select(scored([[1, 0]]))
