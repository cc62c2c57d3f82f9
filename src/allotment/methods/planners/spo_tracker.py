"""SPO's belief: a Beta distribution of each prompt's success, forgotten as the policy changes (arXiv 2509.13232)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from allotment.checks import check_setting
from allotment.prediction.binomial import visits
from allotment.prediction.posteriors import BetaPosterior
from allotment.prompts.ids import PromptTable, canonical_ids
from allotment.state import State, check_state, from_state
from allotment.types import FloatArray, PromptId, PromptIds

LEAST_MEMORY, MOST_MEMORY = 0.875, 0.96
"""Bounds of the forgetting factor rho; the first is also what a start is worth, 1 / (1 - rho) = 8 rollouts."""
TINY = 1e-9
"""Least pseudo-count: without smoothing a prompt of which no rollout succeeded would have none."""
Change = Callable[[tuple[PromptId, ...]], FloatArray]
"""[B] mean absolute change of the tokens' log-probabilities of each prompt's last rollout, since it was generated."""


class BetaTracker:
    """``alpha <- rho alpha + successes``, ``beta <- rho beta + failures`` at a visit of a prompt; nothing is shared.

    Where who holds the policy tells its change D, ``rho = 2^(-D / half_change)`` within [0.875, 0.96], as the paper
    has it. A planner is not told, and has ``forgetting`` then: 0.875, the constant of the released code.

    Args:
        forgetting: rho where the change is not known, in (0, 1].
        change: D of the prompts that were visited.
        half_change: D at which half is forgotten; 0.06 in the released code.
        offline: successes and rollouts of each prompt by the policy before training. Such a prompt starts with 8
            pseudo-counts in the ratio of ``successes + smoothing`` to ``failures + smoothing``.
        smoothing: 1/2 in the released code, 0 in the paper.
        initial: alpha and beta of a prompt without those; 1/2, as the released code has it for no offline rollouts.

    Raises:
        InvalidInputError: a setting is out of its range.
    """

    KIND = "BetaTracker"

    def __init__(
        self,
        *,
        forgetting: float = LEAST_MEMORY,
        change: Change | None = None,
        half_change: float = 0.06,
        offline: Mapping[PromptId, tuple[int, int]] | None = None,
        smoothing: float = 0.5,
        initial: float = 0.5,
    ) -> None:
        check_setting("forgetting", forgetting, 0 < forgetting <= 1, "0 < forgetting <= 1")
        check_setting("half_change", half_change, 0 < half_change < np.inf, "a positive number")
        check_setting("smoothing", smoothing, 0 <= smoothing < np.inf, "a number >= 0")
        check_setting("initial", initial, 0 < initial < np.inf, "a positive number")
        self.forgetting, self.half_change, self.initial = float(forgetting), float(half_change), float(initial)
        self.change = change
        self._table = PromptTable(2)
        if offline:
            self._start(offline, smoothing)

    def _start(self, offline: Mapping[PromptId, tuple[int, int]], smoothing: float) -> None:
        counts = np.array(list(offline.values()))
        started, successes_B, trials_B = visits(list(offline), counts[:, 0], counts[:, 1])
        share_B = (successes_B + smoothing) / (trials_B + 2 * smoothing)
        self._table.set(started, np.stack([share_B, 1 - share_B], axis=1) / (1 - LEAST_MEMORY))

    def predict(self, ids: PromptIds) -> BetaPosterior:
        """[Q] the Beta posterior of each prompt."""
        counts_Q2 = np.maximum(self._table.gather(canonical_ids(ids, unique=False), self.initial), TINY)
        return BetaPosterior.from_counts(counts_Q2[:, 0], counts_Q2[:, 1])

    def observe(self, ids: PromptIds, successes: Any, trials: Any) -> None:
        """Learn from one visit of each prompt [B]."""
        visited, successes_B, trials_B = visits(ids, successes, trials)
        if visited:
            kept_B1 = memory(self.change(visited), self.half_change)[:, None] if self.change else self.forgetting
            before_B2 = self._table.gather(visited, self.initial)
            self._table.set(visited, kept_B1 * before_B2 + np.stack([successes_B, trials_B - successes_B], axis=1))

    def state_dict(self) -> State:
        """Settings, ids and pseudo-counts."""
        settings = {"forgetting": self.forgetting, "half_change": self.half_change, "initial": self.initial}
        return {"kind": self.KIND, **settings, **self._table.state("counts")}

    def load_state_dict(self, state: State) -> None:
        """See :class:`~allotment.state.Stateful`."""
        names = ("forgetting", "half_change", "initial")
        check_state(state, self.KIND, (*names, "ids", "counts"))
        loaded = from_state(lambda: BetaTracker(**{name: state[name] for name in names}))
        loaded._table = PromptTable.from_state(state, "counts", 2)
        vars(self).update(vars(loaded), change=self.change)


def memory(change_B: FloatArray, half_change: float) -> FloatArray:
    """[B] rho: what is left of pseudo-counts after a change of the policy."""
    return np.clip(2.0 ** (-change_B / half_change), LEAST_MEMORY, MOST_MEMORY)
