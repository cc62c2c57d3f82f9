"""A perceptron of two layers for regression, trained by Adam (numpy alone).

scikit-learn's ``MLPRegressor.partial_fit`` does the same sums, which a test checks; but its optimizer can be restored
only through private attributes, and it would be the one dependency of :mod:`allotment.selection` besides numpy.
"""

from __future__ import annotations

import numpy as np

from allotment.state import State, array_from_state, check_state
from allotment.types import FloatArray

BETAS = (0.9, 0.999)
EPSILON = 1e-8


class Perceptron:
    """``f(x) = relu(x W + b) v + c``. Starts as the constant 0: v = 0, W by Glorot's rule from the seed."""

    KIND = "Perceptron"

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
        return {"kind": self.KIND, "updates": self._updates, **arrays}

    def load_state_dict(self, state: State) -> None:
        """Take over what :meth:`state_dict` gave, all or nothing.

        Raises:
            StateError: keys are missing, or arrays have another shape.
        """
        names = ("parameters", "means", "squares")
        check_state(state, self.KIND, ("updates", *names))
        parameters, means, squares = (
            [array_from_state(state[name], str(i), p.shape) for i, p in enumerate(self._parameters)] for name in names
        )
        self._parameters, self._means, self._squares = parameters, means, squares
        self._updates = state["updates"]
