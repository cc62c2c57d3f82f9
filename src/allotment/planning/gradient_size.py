"""The squared gradient of a prompt: what it costs to leave the prompt out (docs/joint.md)."""

from __future__ import annotations

import numpy as np

from allotment.errors import StateError
from allotment.planning.score_weighted import FORGETTING
from allotment.state import State, array_from_state, check_state
from allotment.types import FloatArray, IntArray, Posterior

USUAL_KAPPA = 1.5
"""``|g|^2 = kappa E[(p (1 - p))^2]`` in units of the size of a score: 1.8 was measured in the lab with scratchpad, and
the optimum is broad (docs/joint.md)."""
_KAPPA_RANGE = (0.3, 6.0)
_PRIOR_WEIGHT = 4.0
"""What the usual kappa weighs: as much as 64 prompts of p = 1/2."""


class GradientSize:
    """The squared gradient of a prompt in units of the size of its scores, ``kappa E[(p (1 - p))^2]``.

    kappa is :data:`USUAL_KAPPA` until scores are told; then it is learnt: the mean product ``x_i x_j (s_i . s_j)`` of
    two different rollouts of a prompt is unbiased for its squared gradient, with x the success minus the belief.
    """

    KIND = "GradientSize"

    def __init__(self) -> None:
        self._seen = np.zeros(2)
        """Discounted sums of squared gradients and of ``E[(p (1 - p))^2]``."""

    @property
    def kappa(self) -> float:
        """The factor."""
        gradient, modelled = self._seen
        kappa = (gradient + USUAL_KAPPA * _PRIOR_WEIGHT) / (modelled + _PRIOR_WEIGHT)
        return float(np.clip(kappa, *_KAPPA_RANGE))

    def predict(self, posterior: Posterior) -> FloatArray:
        """[Q] squared gradient of each prompt."""
        return self.kappa * posterior.power_moment(2, 2)

    def observe(self, posterior: Posterior, successes_N: FloatArray, rows_N: IntArray, scores_NK: FloatArray) -> None:
        """Learn from the N rollouts of a step; prompts of one rollout say nothing.

        Args:
            posterior: the belief about the Q prompts before the step.
            successes_N: [N] 0 or 1.
            rows_N: [N] row of each rollout's prompt.
            scores_NK: [N, K] sketches of the rollouts' scores.
        """
        size = float((scores_NK**2).sum(1).mean()) if len(scores_NK) else 0.0
        n_Q = np.bincount(rows_N, minlength=len(posterior))
        if size <= 0.0 or not (n_Q > 1).any():
            return
        terms_NK = (successes_N - posterior.success_probability()[rows_N])[:, None] * scores_NK
        sums_QK = np.stack([np.bincount(rows_N, column, minlength=len(n_Q)) for column in terms_NK.T], axis=1)
        own_Q = np.bincount(rows_N, (terms_NK**2).sum(1), minlength=len(n_Q))
        several_Q = n_Q > 1
        pairs_Q = (n_Q * (n_Q - 1.0))[several_Q]
        squares_Q = ((sums_QK**2).sum(1) - own_Q)[several_Q] / pairs_Q
        new = np.array([squares_Q.sum() / size, posterior.power_moment(2, 2)[several_Q].sum()])
        self._seen = FORGETTING * self._seen + new

    def state_dict(self) -> State:
        """The sums."""
        return {"kind": self.KIND, "seen": self._seen.copy()}

    def load_state_dict(self, state: State) -> None:
        """See :class:`~allotment.state.Stateful`."""
        check_state(state, self.KIND, ("seen",))
        seen = array_from_state(state, "seen", (2,))
        if not seen[1] >= 0:
            fix = "load a whole state_dict(), or start anew"
            raise StateError("the sums of a state cannot be right", got=seen, allowed="the second >= 0", fix=fix)
        self._seen = seen
