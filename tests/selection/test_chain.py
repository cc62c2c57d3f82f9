"""Two selectors as one: weights multiply, what contradicts is refused, the state is both."""

from dataclasses import replace

import numpy as np
import pytest
from selection_cases import scored

from allotment.errors import ConfigError, InvalidInputError, StateError
from allotment.methods.selectors.completion_pruning import CompletionPruning
from allotment.selection import ImportanceWeights, Selection, Selector, Stateless
from allotment.selection.chain import Chain

SCORED = scored([[1, 0, 0, 0, 0, 0], [1, 1, 1, 0, 1, 1], [1, 0], [0, 0, 0], [0, 1, 0]])
KEEP_Q = np.array([0.5, 1, 0.25, 1, 0.5])
DRAWN = replace(SCORED, keep_probability_Q=KEEP_Q, asked=10)


class Says(Stateless):
    """A selector that says what it was made with, and remembers what it saw and how often."""

    def __init__(self, window=1, **selection):
        self.window, self.selection, self.seen = window, selection, 0

    def select(self, scored):
        self.seen, self.scored = self.seen + 1, scored
        return Selection(**{"weights_N": np.ones(len(scored)), **self.selection})

    def state_dict(self):
        return {"kind": "Says", "seen": self.seen}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        if state["seen"] < 0:
            raise StateError("negative")
        self.seen = state["seen"]


TWO = scored([[1, 0]])
SOME = np.array([1.0, 0.0])
OWN = np.array([0.5, -0.5])


def test_importance_weights_and_completion_pruning_multiply():
    """Dynamic Pruning as a whole: 1 / ((1 - P_q) (1 - P_o)), relative to all prompts asked."""
    chain = Chain(ImportanceWeights(), CompletionPruning(rate=0.5))
    assert isinstance(chain, Selector)
    assert chain.window == 1
    selection = chain.select(DRAWN)
    pruned = CompletionPruning(rate=0.5).select(DRAWN)
    np.testing.assert_allclose(selection.weights_N, 5 / 10 / KEEP_Q[DRAWN.rows_N] * pruned.weights_N)
    assert 0 < selection.is_kept.sum() < len(DRAWN)
    assert (selection.baseline, selection.denominator) == ("generated", "generated")
    other = Chain(CompletionPruning(rate=0.5), ImportanceWeights()).select(DRAWN)
    np.testing.assert_array_equal(other.weights_N, selection.weights_N)


def test_both_levels_together_are_unbiased():
    """Invariant 1 of the sheet for the whole method: fixed gradients, lots over prompts and over rollouts."""
    rng = np.random.default_rng(0)
    g_N, rate_Q = rng.normal(1, 1, len(SCORED)), np.array([0.5, 0.0, 0.7, 0.3, 0.0])
    sizes_Q = np.bincount(SCORED.rows_N)
    estimates = []
    for step in range(3000):
        let_through_Q = rng.random(5) >= rate_Q
        here_N = let_through_Q[SCORED.rows_N]
        rows_N = (np.cumsum(let_through_Q) - 1)[SCORED.rows_N[here_N]]
        columns = {
            name: getattr(SCORED, name)[here_N] for name in ("rewards_N", "advantages_N", "lengths_N", "numbers_N")
        }
        part = replace(
            SCORED, step=step, rows_N=rows_N, keep_probability_Q=1 - rate_Q[let_through_Q], asked=5, **columns
        )
        weights_N = Chain(ImportanceWeights(), CompletionPruning(rate=0.5)).select(part).weights_N
        estimates.append((weights_N * g_N[here_N] / sizes_Q[SCORED.rows_N[here_N]]).sum() / let_through_Q.sum())
    whole = (g_N / sizes_Q[SCORED.rows_N]).sum() / 5
    assert np.mean(estimates) == pytest.approx(whole, abs=4 * np.std(estimates) / 3000**0.5)


def test_advantages_and_rewards_of_either_are_passed_on():
    second = Says()
    chained = Chain(Says(advantages_N=OWN), second).select(TWO)
    np.testing.assert_array_equal(chained.advantages_N, OWN)
    np.testing.assert_array_equal(second.scored.advantages_N, OWN)  # it chooses by what is trained on
    np.testing.assert_array_equal(Chain(Says(), Says(advantages_N=OWN)).select(TWO).advantages_N, OWN)
    np.testing.assert_array_equal(Chain(Says(), Says(rewards_N=OWN)).select(TWO).rewards_N, OWN)


@pytest.mark.parametrize("scope", ["baseline", "denominator"])
@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ({"scope": "kept", "weights_N": SOME}, {"scope": "kept", "weights_N": SOME}, "kept"),
        ({"weights_N": np.ones(2)}, {"scope": "kept", "weights_N": SOME}, "kept"),
        ({"scope": "kept", "weights_N": SOME}, {"weights_N": 2 * np.ones(2)}, "kept"),
        ({"weights_N": SOME}, {"scope": "kept", "weights_N": np.ones(2)}, "generated"),
        ({"weights_N": SOME}, {"scope": "kept", "weights_N": SOME}, None),
        ({"scope": "kept", "weights_N": SOME}, {"weights_N": SOME}, None),
    ],
)
def test_scopes_agree_unless_one_keeps_everything(scope, first, second, expected):
    one, other = (Says(**{scope if k == "scope" else k: v for k, v in said.items()}) for said in (first, second))
    if expected is None:
        with pytest.raises(ConfigError, match=f"Says and Says cannot be combined\n.*{scope}s"):
            Chain(one, other).select(TWO)
    else:
        assert getattr(Chain(one, other).select(TWO), scope) == expected


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ({"advantages_N": OWN}, {"advantages_N": OWN}, "advantages or rewards set by both"),
        ({"advantages_N": OWN}, {"rewards_N": OWN}, "advantages or rewards set by both"),
        ({"rewards_N": OWN}, {}, "rewards set by the first"),
    ],
)
def test_contradictions_are_refused(first, second, reason):
    with pytest.raises(ConfigError, match=reason):
        Chain(Says(**first), Says(**second)).select(TWO)


def test_selectors_of_other_windows_are_refused():
    with pytest.raises(ConfigError, match="windows of 1 and 3 steps"):
        Chain(ImportanceWeights(), Says(window=3))
    assert Chain(Says(window=3), Says(window=3)).window == 3


def test_a_selection_that_does_not_fit_is_refused_whoever_made_it():
    for pair in ((Says(weights_N=np.ones(3)), Says()), (Says(), Says(weights_N=np.ones(3)))):
        with pytest.raises(InvalidInputError, match="weights of a selection"):
            Chain(*pair).select(TWO)


def test_the_state_is_both_and_all_or_nothing():
    chain = Chain(Says(), Says())
    chain.select(TWO)
    chain.second.select(TWO)
    state = chain.state_dict()
    other = Chain(Says(), Says())
    other.load_state_dict(state)
    assert (other.first.seen, other.second.seen) == (1, 2)
    with pytest.raises(StateError):
        other.load_state_dict({**state, "first": {"kind": "Says", "seen": 7}, "second": {"kind": "Says", "seen": -1}})
    assert (other.first.seen, other.second.seen) == (1, 2)
    with pytest.raises(StateError, match="another kind"):
        Chain(CompletionPruning(), Says()).load_state_dict(state)
