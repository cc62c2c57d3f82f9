"""What training on a rollout brings, learnt from what training on many at a time has brought."""

from __future__ import annotations

import numpy as np

from allotment.methods.selectors.perceptron import Perceptron
from allotment.state import State, array_from_state, check_state
from allotment.types import FloatArray

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


class GainRegressor:
    """Regression of a round's gain on the features of every rollout trained on in it; all sizes are a reconstruction.

    Every rollout of a round has the same target, so the signal of a single one is faint: credit comes from comparing
    rounds. Features are standardised, and gains divided by their standard deviation, over the rounds remembered.
    """

    KIND = "GainRegressor"

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
        return {"kind": self.KIND, "perceptron": self._perceptron.state_dict(), **rounds}

    def load_state_dict(self, state: State) -> None:
        """Take over what :meth:`state_dict` gave, all or nothing.

        Raises:
            StateError: keys are missing, or arrays do not fit together.
        """
        check_state(state, self.KIND, ("perceptron", "features", "gains", "steps"))
        arms = np.size(state["gains"])
        features_AF = array_from_state(state, "features", (arms, self._features_AF.shape[1]))
        gains_A, steps_A = (array_from_state(state, key, (arms,)) for key in ("gains", "steps"))
        self._perceptron.load_state_dict(state["perceptron"])
        self._features_AF, self._gains_A, self._steps_A = features_AF, gains_A, steps_A
