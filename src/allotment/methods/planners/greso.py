"""GRESO (arXiv 2506.02177): skips prompts whose last groups were all right or all wrong, then samples as DAPO does."""

from __future__ import annotations

import math
from typing import Unpack

import numpy as np
import numpy.typing as npt

from allotment.checks import check_setting
from allotment.errors import StateError
from allotment.methods.planners.dapo import DAPO, mixed_groups, success_shares
from allotment.planning.contract import PlannerEntry
from allotment.planning.outcome import Outcome
from allotment.planning.planner import Common
from allotment.prompts.ids import PromptTable
from allotment.registry import Row
from allotment.state import State, Stateful, check_state
from allotment.types import FloatArray, IntArray, PromptId

LEAST, MOST = 0.05, 0.95
"""Range of the base probabilities (``min_p``, ``max_p`` of the code)."""
FIRST_DRAW, LEAST_DRAW, SAFETY = 1.5, 0.25, 1.25
"""Candidates of the first round and least of a refill, per group wanted: 384 and 64 at the code's 256; and what a
refill draws for every group it expects to need."""


class GRESO(DAPO):
    """Skips a candidate with probability ``1 - max(p_e ** z, floor)``, z its latest zero-variance groups in a row.

    z counts the most recent visits that were all right (with the base probability ``p_easy``) or all wrong
    (``p_hard``). After each step each base moves by ``adjustment``: down if the share of its kind among the groups
    generated reached its target (a third of ``zero_variance`` for easy, two thirds for hard), else up, within
    [0.05, 0.95]; not while all candidates are new. What is let through is drawn and filtered as in :class:`DAPO`:
    1.5 B candidates first, then refills of ``1.25 * missing / (1 - zero-variance share)``, at least 0.25 B and at
    most the first draw.

    Decides before generation and between rounds. C / B rollouts for every candidate drawn; fewer groups are trained
    on where too few candidates pass. Where all are skipped, the one nearest to passing is drawn: never an empty step.

    Not re-weighted, hence biased: beside what :class:`DAPO` says, a prompt counts by how often it is let through,
    :func:`visit_rate`.

    Source: the released code (Infini-AI-Lab/GRESO, b277843). Deviations: draw sizes are per group wanted, where the
    code has 384 and 64 prompts; the share of zero-variance groups is that of the step so far, not of the last round;
    the code stops after a refill that fits one round, even if groups are still missing; the code takes a mean reward
    from 0.98 as easy and to 0.11 as hard, to allow for format rewards.

    Args:
        budget: C, rollouts that are trained on if B groups are found.
        success_threshold: a reward of at least this counts as a success.
        trained_prompts: B, groups wanted; all prompts asked if None.
        draw: candidates of the first round, at most; 1.5 B if None.
        exploration: what both bases start at, in [0.05, 0.95].
        adjustment: by which they move; 0 fixes them.
        zero_variance: target share of zero-variance groups.
        floor: least probability to let a prompt through, in (0, 1].
    """

    def __init__(
        self,
        *,
        success_threshold: float = 0.5,
        trained_prompts: int | None = None,
        draw: int | None = None,
        exploration: float = 0.5,
        adjustment: float = 0.01,
        zero_variance: float = 0.25,
        floor: float = 0.01,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(success_threshold=success_threshold, trained_prompts=trained_prompts, draw=draw, **common)
        check_setting("exploration", exploration, LEAST <= exploration <= MOST, f"{LEAST} to {MOST}")
        check_setting("adjustment", adjustment, 0 <= adjustment < 1, "0 <= adjustment < 1")
        check_setting("zero_variance", zero_variance, 0 <= zero_variance <= 1, "a share, 0 to 1")
        check_setting("floor", floor, 0 < floor <= 1, "0 < floor <= 1: a prompt never let through cannot change")
        self.exploration, self.adjustment = float(exploration), float(adjustment)
        self.zero_variance, self.floor = float(zero_variance), float(floor)
        self._runs, self._bases = PromptTable(), _Bases(self.exploration)

    @property
    def bases(self) -> tuple[float, float]:
        """The base probabilities ``(p_easy, p_hard)`` as they are now."""
        return self._bases.easy, self._bases.hard

    def keep_probability(self, ids: tuple[PromptId, ...]) -> FloatArray:
        """[Q] probability with which each prompt would be let through now; 1 for those never visited."""
        run_Q = self._runs.gather(ids)
        base_Q = np.where(run_Q > 0, self._bases.easy, self._bases.hard)
        return np.where(run_Q == 0, 1.0, np.maximum(base_Q ** np.abs(run_Q), self.floor))

    def _candidates(self, ids: tuple[PromptId, ...], step: int) -> IntArray:
        margin_Q = self.keep_probability(ids) - self._draws(ids, "skip/", step)
        order = super()._candidates(ids, step)
        passed = order[margin_Q[order] > 0]
        return passed if len(passed) else np.array([margin_Q.argmax()])

    def _first_draw(self, wanted: int) -> int:
        return self.draw or math.ceil(FIRST_DRAW * wanted)

    def _next_draw(self, outcome: Outcome, wanted: int, missing: int) -> int:
        mixed_Q = mixed_groups(outcome, self.success_threshold)
        most = self._first_draw(wanted)
        needed = SAFETY * missing * int((outcome.received > 0).sum()) / max(int(mixed_Q.sum()), 1)
        return min(max(int(needed), math.ceil(LEAST_DRAW * wanted)), most)

    def _observe(self, outcome: Outcome) -> None:
        shares_Q = success_shares(outcome, self.success_threshold)
        before_Q = self._runs.gather(outcome.prompt_ids, np.nan)
        told = np.isfinite(shares_Q)
        kind_Q = np.where(shares_Q == 1, 1.0, np.where(shares_Q == 0, -1.0, 0.0))
        run_Q = np.nan_to_num(before_Q)
        run_Q = np.where(np.sign(run_Q) == kind_Q, run_Q, 0.0) + kind_Q
        if np.isfinite(before_Q).any() and told.any():
            easy, hard = float((kind_Q[told] > 0).mean()), float((kind_Q[told] < 0).mean())
            target = self.zero_variance / 3  # as in the code: a third for the easy ones, two for the hard ones
            self._bases.move(self.adjustment, easy >= target, hard >= 2 * target)
        self._runs.set([p for p, some in zip(outcome.prompt_ids, told, strict=True) if some], run_Q[told])

    @property
    def _parts(self) -> dict[str, Stateful]:
        return {"runs": self._runs, "bases": self._bases}

    def _settings(self) -> State:
        own = {"exploration": self.exploration, "adjustment": self.adjustment}
        return {**super()._settings(), **own, "zero_variance": self.zero_variance, "floor": self.floor}


class _Bases:
    """The two base probabilities."""

    def __init__(self, start: float) -> None:
        self.easy = self.hard = start

    def move(self, step: float, is_easy_down: bool, is_hard_down: bool) -> None:
        """One step each, down or up, within [LEAST, MOST]."""
        self.easy = min(max(self.easy - step if is_easy_down else self.easy + step, LEAST), MOST)
        self.hard = min(max(self.hard - step if is_hard_down else self.hard + step, LEAST), MOST)

    def state_dict(self) -> State:
        """Both."""
        return {"kind": "Bases", "easy": self.easy, "hard": self.hard}

    def load_state_dict(self, state: State) -> None:
        """Take over what :meth:`state_dict` gave; StateError where a value is missing or out of its range."""
        check_state(state, "Bases", ("easy", "hard"))
        easy, hard = state["easy"], state["hard"]
        if not all(type(base) is float and LEAST <= base <= MOST for base in (easy, hard)):
            raise StateError(
                "the base probabilities of a state cannot be used",
                got=f"{easy!r}, {hard!r}",
                allowed=f"two numbers from {LEAST} to {MOST}",
                fix="load a whole state_dict(), or start anew",
            )
        self.easy, self.hard = easy, hard


def visit_rate(
    success_probability: npt.ArrayLike, rollouts: int, easy: float = 0.5, hard: float = 0.5, floor: float = 0.01
) -> FloatArray:
    """[Q] how often a prompt is let through in the long run, per time it is asked, with fixed bases and fixed p.

    The runs z after a visit have probabilities ``(1 - e) e^z`` for easy ones, ``e = p^n``, and ``(1 - h) h^z`` for
    hard ones, ``h = (1 - p)^n``; after a run z the next visit takes ``1 / max(p_e^z, floor)`` asks in the mean. The
    rate is one over the mean of that. Where p is 0 or 1 it is the floor.
    """
    p_Q = np.atleast_1d(np.asarray(success_probability, dtype=np.float64))
    z_Z = np.arange(1, 2 + math.ceil(math.log(floor) / math.log(max(easy, hard))))  # longer runs wait no longer
    asks_Q = 1.0 - p_Q**rollouts - (1 - p_Q) ** rollouts
    for share_Q, base in ((p_Q**rollouts, easy), ((1 - p_Q) ** rollouts, hard)):
        waits_Z = 1 / np.maximum(base**z_Z, floor)
        run_QZ = (1 - share_Q[:, None]) * share_Q[:, None] ** z_Z
        asks_Q += run_QZ @ waits_Z + share_Q ** (z_Z[-1] + 1) / floor
    return 1.0 / asks_Q


ENTRY = PlannerEntry(
    GRESO,
    GRESO.contract,
    candidates=2,
    row=Row(
        "whether a group will have zero variance, from its last visits",
        "before generation and between rounds",
        "as `dapo`",
        "a prompt counts by how often it is let through: in proportion to its rollouts",
        "arXiv 2506.02177, released code",
        "draw sizes per group wanted; accuracy 0 and 1 where the code has 0.11 and 0.98",
    ),
)
