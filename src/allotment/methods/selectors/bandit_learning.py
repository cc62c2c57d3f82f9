"""What the contextual bandit learns and remembers: a perceptron, the gains it is fitted to, the rollouts of late steps.

scikit-learn's ``MLPRegressor.partial_fit`` does the same sums as :class:`Perceptron`, which a test checks; but its
optimizer can be restored only through private attributes, and selectors need numpy alone.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from allotment.errors import StateError
from allotment.methods.selectors.subsets import BoolArray
from allotment.selection import Scored
from allotment.state import State, array_from_state, check_state, rows_from_state
from allotment.types import FloatArray, IntArray

BETAS = (0.9, 0.999)
EPSILON = 1e-8
ROUNDS = 64
"""Rounds that are remembered."""
ARMS = 128
"""Rollouts remembered of a round, the first of those observed."""
UPDATES = 16
"""Steps of Adam after each round."""
BATCH = 256
"""Rollouts of a step of Adam, drawn from all that are remembered."""
OUTLIER = 5.0
"""Standard deviations at which a feature is cut off."""
LARGEST = int(np.iinfo(np.int64).max)


class Perceptron:
    """``f(x) = relu(x W + b) v + c``. Starts as the constant 0: v = 0, W by Glorot's rule from the seed."""

    def __init__(self, inputs: int, hidden: int, *, learning_rate: float, seed: int) -> None:
        bound = np.sqrt(2.0 / (inputs + hidden))
        weights_FH = np.random.default_rng(seed).uniform(-bound, bound, (inputs, hidden))
        self.learning_rate = learning_rate
        self._parameters = [weights_FH, np.zeros(hidden), np.zeros(hidden), np.zeros(1)]
        self._means = [np.zeros_like(p) for p in self._parameters]
        self._squares = [np.zeros_like(p) for p in self._parameters]
        self._updates = 0

    def predict(self, inputs_NF: FloatArray) -> FloatArray:
        """[N]. Equal rows give equal bits wherever they stand."""
        weights_FH, b_H, v_H, c = self._parameters
        hidden_NH = np.maximum(np.einsum("nf,fh->nh", inputs_NF, weights_FH) + b_H, 0.0)
        return np.asarray((hidden_NH * v_H).sum(axis=1) + c, dtype=np.float64)

    def update(self, inputs_NF: FloatArray, targets_N: FloatArray) -> None:
        """One step of Adam on half the mean squared error."""
        weights_FH, b_H, v_H, c = self._parameters
        hidden_NH = np.maximum(inputs_NF @ weights_FH + b_H, 0.0)
        error_N = (hidden_NH @ v_H + c - targets_N) / len(targets_N)
        back_NH = np.outer(error_N, v_H) * (hidden_NH > 0)
        gradients = [inputs_NF.T @ back_NH, back_NH.sum(axis=0), hidden_NH.T @ error_N, error_N.sum(keepdims=True)]
        self._updates += 1
        first, second = BETAS
        rate = self.learning_rate * np.sqrt(1 - second**self._updates) / (1 - first**self._updates)
        for i, gradient in enumerate(gradients):
            self._means[i] = first * self._means[i] + (1 - first) * gradient
            self._squares[i] = second * self._squares[i] + (1 - second) * gradient**2
            self._parameters[i] = self._parameters[i] - rate * self._means[i] / (np.sqrt(self._squares[i]) + EPSILON)

    def state_dict(self) -> State:
        """Parameters and moments of Adam."""
        groups = {"parameters": self._parameters, "means": self._means, "squares": self._squares}
        arrays = {name: {str(i): a.copy() for i, a in enumerate(group)} for name, group in groups.items()}
        return {"kind": "Perceptron", "updates": self._updates, **arrays}

    def load_state_dict(self, state: State) -> None:
        """Take over what :meth:`state_dict` gave, all or nothing; StateError where it does not fit."""
        names = ("parameters", "means", "squares")
        check_state(state, "Perceptron", ("updates", *names))
        parameters, means, squares = (
            [array_from_state(state[name], str(i), p.shape) for i, p in enumerate(self._parameters)] for name in names
        )
        self._parameters, self._means, self._squares = parameters, means, squares
        self._updates = state["updates"]


class GainRegressor:
    """Regression of a round's gain on the features of every rollout trained on in it; all sizes are a reconstruction.

    Every rollout of a round has the same target, so the signal of a single one is faint: credit comes from comparing
    rounds. Features are standardised, and gains divided by their standard deviation, over the rounds remembered.
    """

    def __init__(self, features: int, *, hidden: int, learning_rate: float, seed: int) -> None:
        self._seed = seed
        self._perceptron = Perceptron(features, hidden, learning_rate=learning_rate, seed=seed)
        self._features_AF = np.empty((0, features))
        self._gains_A = np.empty(0)
        self._steps_A = np.empty(0)

    def predict(self, features_NF: FloatArray) -> FloatArray:
        """[N] predicted gains, in standard deviations; all 0 before the second round."""
        return self._perceptron.predict(self._standardised(features_NF))

    def observe(self, step: int, features_AF: FloatArray, gain: float) -> None:
        """Learn that training on rollouts with these features at ``step`` brought ``gain``.

        As long as all gains are equal there is nothing to tell rollouts apart by, and predictions stay as they are.
        """
        recent_A = self._steps_A > step - ROUNDS
        new = features_AF[:ARMS]
        self._features_AF = np.concatenate([self._features_AF[recent_A], new])
        self._gains_A = np.concatenate([self._gains_A[recent_A], np.full(len(new), gain)])
        self._steps_A = np.concatenate([self._steps_A[recent_A], np.full(len(new), float(step))])
        if not np.ptp(self._gains_A):
            return
        inputs_AF = self._standardised(self._features_AF)
        targets_A = self._gains_A / self._gains_A.std()
        random = np.random.default_rng([self._seed, step])
        for _ in range(UPDATES):
            drawn = random.integers(len(targets_A), size=BATCH)
            self._perceptron.update(inputs_AF[drawn], targets_A[drawn])

    def _standardised(self, features_NF: FloatArray) -> FloatArray:
        if not len(self._features_AF):
            return features_NF
        varies_F = np.ptp(self._features_AF, axis=0) > 0  # the standard deviation of equal numbers need not be 0
        spread_F = np.where(varies_F, self._features_AF.std(axis=0), 1.0)
        standard_NF = (features_NF - self._features_AF.mean(axis=0)) / spread_F
        return np.asarray(np.clip(standard_NF, -OUTLIER, OUTLIER), dtype=np.float64)

    def state_dict(self) -> State:
        """The perceptron and the rounds remembered."""
        rounds = {"features": self._features_AF.copy(), "gains": self._gains_A.copy(), "steps": self._steps_A.copy()}
        return {"kind": "GainRegressor", "perceptron": self._perceptron.state_dict(), **rounds}

    def load_state_dict(self, state: State) -> None:
        """Take over what :meth:`state_dict` gave, all or nothing; StateError where it does not fit."""
        check_state(state, "GainRegressor", ("perceptron", "features", "gains", "steps"))
        arms = np.size(state["gains"])
        features_AF = array_from_state(state, "features", (arms, self._features_AF.shape[1]))
        gains_A, steps_A = (array_from_state(state, key, (arms,)) for key in ("gains", "steps"))
        self._perceptron.load_state_dict(state["perceptron"])
        self._features_AF, self._gains_A, self._steps_A = features_AF, gains_A, steps_A


class Entry(NamedTuple):
    """One rollout."""

    step: int
    """Of its generation."""
    reward: float
    uses: int
    """How often it was trained on."""


class RolloutBuffer:
    """First in, first out, ``window`` steps: rollouts by number. The completions are the trainer's to keep."""

    def __init__(self, window: int) -> None:
        self.window = window
        self._entries: dict[int, Entry] = {}

    def uses(self, scored: Scored) -> IntArray:
        """[N] how often each rollout was trained on; 0 for those of this step.

        Raises:
            StateError: a rollout of this step is in the buffer, or one of an earlier step is not in it as it was shown
                then: buffer and rollouts are of different runs.
        """
        entries = [self._entries.get(number) for number in scored.numbers_N.tolist()]
        for entry, number, step, reward in zip(entries, *_columns(scored), strict=True):
            if entry is not None if step == scored.step else entry is None or entry[:2] != (step, reward):
                raise StateError(
                    "the rollouts do not belong to the run of this buffer",
                    got=f"number {number}, generated at step {step}, at step {scored.step}; in the buffer: {entry}",
                    allowed="new numbers for new rollouts, and older rollouts as they were shown at their own step",
                    fix="restore selector and rollouts from one and the same checkpoint, or start both anew",
                )
        return np.array([0 if entry is None else entry.uses for entry in entries], dtype=np.int64)

    def record(self, scored: Scored, kept_N: BoolArray) -> None:
        """Take in the rollouts of this step, count the uses of all that are kept, and forget what leaves the window."""
        first = scored.step - self.window + 1
        self._entries = {number: entry for number, entry in self._entries.items() if entry.step >= first}
        for number, step, reward, kept in zip(*_columns(scored), kept_N.tolist(), strict=True):
            entry = self._entries.get(number, Entry(step, reward, 0))
            self._entries[number] = entry._replace(uses=entry.uses + kept)

    def state_dict(self) -> State:
        """A row per rollout."""
        kinds = [("steps", np.int64), ("rewards", np.float64), ("uses", np.int64)]
        rows = np.array(list(self._entries.values()), dtype=kinds)
        numbers = np.array(list(self._entries), dtype=np.int64)
        return {"kind": "RolloutBuffer", "numbers": numbers, **{name: rows[name].copy() for name, _ in kinds}}

    def load_state_dict(self, state: State) -> None:
        """Take over what :meth:`state_dict` gave, all or nothing; StateError where it does not fit."""
        check_state(state, "RolloutBuffer", ("numbers", "steps", "rewards", "uses"))
        numbers, steps, uses = (rows_from_state(state, key, LARGEST).tolist() for key in ("numbers", "steps", "uses"))
        rewards = array_from_state(state, "rewards", (len(numbers),)).tolist()
        if not len(set(numbers)) == len(numbers) == len(steps) == len(uses):
            raise StateError(
                "the rollout buffer of a state does not fit together",
                got=f"{len(set(numbers))} numbers, {len(steps)} steps, {len(uses)} uses",
                allowed="one of each per rollout",
                fix="load a whole state_dict(), or start anew",
            )
        self._entries = {n: Entry(*row) for n, row in zip(numbers, zip(steps, rewards, uses, strict=True), strict=True)}


def _columns(scored: Scored) -> tuple[list[int], list[int], list[float]]:
    """Number, step of generation and reward of each rollout; [N] each."""
    steps_N = scored.step - scored.ages_Q[scored.rows_N]
    return scored.numbers_N.tolist(), steps_N.tolist(), scored.rewards_N.tolist()
