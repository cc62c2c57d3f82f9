"""OptPO: votes until one answer is sure enough, for training without labels (arXiv 2512.02882)."""

from __future__ import annotations

from typing import Literal, Unpack

import numpy as np
import numpy.typing as npt

from allotment.allocation.exact import check_bounds
from allotment.checks import check_choice, check_setting, check_whole
from allotment.methods.selectors.pseudo_labels import PseudoLabels, Tally, needed_answers
from allotment.planning.contract import Contract, PlannerEntry
from allotment.planning.outcome import Outcome
from allotment.planning.planner import Common, Planner
from allotment.planning.rounds import Step
from allotment.registry import Row
from allotment.state import State, Stateful
from allotment.types import Plan, PromptId

Evidence = Literal["bayes_factor", "posterior"]
"""What is compared with the threshold: the odds of the leader against the runner-up, or against all others."""
Retained = Literal["all", "first"]
"""Which votes are trained on: all, or the first N of each prompt."""


class OptPO(Planner):
    """Each prompt is asked again until the answer in the lead is the consensus with odds of ``threshold``.

    A rollout votes with its extracted answer (``tell(..., answers=[...])``). If answer j is the consensus, a vote is
    for j with probability p0 and for each of the m - 1 others with (1 - p0) / (m - 1). So with v votes for the leader L
    and the runner-up S the Bayes factor is ``rho^(v_L - v_S)``, ``rho = p0 (m - 1) / (1 - p0)``: the test is a lead of
    ``ceil(log threshold / log rho)`` votes. The posterior of the leader is ``1 / sum_c rho^(v_c - v_L)`` over all m.
    A vote without an answer is spent and counts for no class.

    Predicts the vote, within a step alone; decides between rounds. N is the lower bound: round 0 asks for N votes (or
    ``votes``, if more). M is ``C // Q``: a step costs at least N Q and at most C rollouts. The test is made after each
    round, so the label is that of all votes. Rewards told are never used. Its :attr:`selector` gives the pseudo-rewards
    (:class:`~allotment.methods.selectors.pseudo_labels.PseudoLabels`): what is optimised is the probability of the
    policy's own modal answer, right or wrong.

    Under the model a prompt is stopped by the Bayes factor with a wrong leader with probability at most
    (m - 1) / threshold; of those that the posterior stops, at most 1 / (1 + threshold) have a wrong one. Prompts that
    reach M have the errors of a plain majority; with p0 near 1/m these are almost all.
    Stopping biases the votes: at m = 4, p0 = 0.5 and a lead of 3 the leader's share is 0.62 on average instead of
    0.5, and one group in seven is unanimous. ``retained="first"`` trains on the first N of each prompt alone, which
    stopping does not touch.

    Source: the paper's text; its tables and code are not available. ``threshold``, ``p0``, M and N
    are a reconstruction, as is m, the number of distinct answers seen and one more. N votes come before the
    first test, where the paper may stop and then go on sampling up to N with the label kept.

    Args:
        budget: C, most rollouts of a step; C // Q is M.
        threshold: odds with which voting stops, > 1; 19 is a probability of 95 %.
        p0: probability with which a vote is for the consensus, above 1/m.
        classes: m; if None the distinct answers of a prompt so far and one more.
        evidence: ``"bayes_factor"`` or ``"posterior"``.
        votes: rollouts of an open prompt in a round; 1 is the test after every vote, more means fewer rounds.
        retained: ``"all"`` or ``"first"``.
    """

    contract = Contract(several_rounds=True, spends=(0.0, 1.0), told=frozenset({"answers"}), selects=PseudoLabels.NEEDS)
    BOUNDS = (3, 64)

    def __init__(
        self,
        *,
        threshold: float = 19.0,
        p0: float = 0.7,
        classes: int | None = None,
        evidence: Evidence = "bayes_factor",
        votes: int = 1,
        retained: Retained = "all",
        **common: Unpack[Common],
    ) -> None:
        super().__init__(**common)
        check_setting("threshold", threshold, 1 < threshold < np.inf, "odds above 1")
        if classes is not None:
            check_whole("classes", classes, 2)
        least = 1 / (classes or 2)
        check_setting("p0", p0, least < p0 < 1, f"a probability above 1/m = {least:.3g}, below 1")
        check_choice("evidence", evidence, Evidence)
        check_whole("votes", votes, 1)
        check_choice("retained", retained, Retained)
        self.threshold, self.p0, self.classes, self.evidence = float(threshold), float(p0), classes, evidence
        self.votes, self.retained = votes, retained

    @property
    def selector(self) -> PseudoLabels:
        """Majority pseudo-rewards."""
        return PseudoLabels(retained=self.bounds[0] if self.retained == "first" else None)

    def _open(self, ids: tuple[PromptId, ...], budget: int) -> Plan:
        lower, upper = self.bounds
        check_bounds(budget, lower, upper, n_prompts=len(ids), minimum_count=lower)
        return self._new_plan(ids, np.full(len(ids), min(max(lower, self.votes), budget // len(ids)), dtype=np.int64))

    def _next(self, step: Step) -> Plan | None:
        outcome = step.needed_outcome
        if not len(outcome.rows_N):
            return None
        answers_N, planned_Q = needed_answers(outcome.answers_N), outcome.planned
        is_open_Q = planned_Q == planned_Q.max()  # who has stopped has not been asked since
        open_N = np.flatnonzero(is_open_Q[outcome.rows_N])
        tally = Tally.of([answers_N[i] for i in open_N], outcome.rows_N[open_N], len(planned_Q))
        is_open_Q &= ~is_sure(tally, self.p0, self.threshold, self.classes, self.evidence)
        most = step.budget // len(planned_Q)
        return step.next_plan(np.where(is_open_Q, np.minimum(self.votes, most - planned_Q), 0))

    def _observe(self, outcome: Outcome) -> None:
        """Nothing."""

    @property
    def _parts(self) -> dict[str, Stateful]:
        return {}

    def _settings(self) -> State:
        names = ("threshold", "p0", "classes", "evidence", "votes", "retained")
        return {**super()._settings(), **{name: getattr(self, name) for name in names}}


def is_sure(
    tally: Tally, p0: float, threshold: float, classes: int | None, evidence: Evidence
) -> npt.NDArray[np.bool_]:
    """[Q] whether the odds of the leader are at least ``threshold``; never without a vote."""
    seen_Q = tally.classes_Q
    m_Q = np.maximum(seen_Q + 1, 2) if classes is None else np.maximum(classes, seen_Q)
    log_rho_Q = np.log(p0 * (m_Q - 1) / (1 - p0))
    if evidence == "bayes_factor":
        against_Q = np.exp(-(tally.first_Q - tally.second_Q) * log_rho_Q)
    else:
        behind_C = tally.votes_C - tally.first_Q[tally.rows_C]
        seen = np.bincount(tally.rows_C, np.exp(behind_C * log_rho_Q[tally.rows_C]), minlength=len(seen_Q))
        against_Q = seen - 1 + (m_Q - seen_Q) * np.exp(-tally.first_Q * log_rho_Q)
    return np.asarray((seen_Q > 0) & (against_Q * threshold <= 1 + 1e-9), dtype=np.bool_)


ENTRY = PlannerEntry(
    OptPO,
    OptPO.contract,
    row=Row(
        "the vote of a prompt, within a step",
        "after every vote",
        "at most C: from N to M votes for each prompt",
        "the probability of the policy's own modal answer, without labels: where it is wrong (here below p = 0.3) the "
        "step leads away from the right one. The plot is its projection on the gradient of p",
        "arXiv 2512.02882",
        "threshold, p0, classes, M and N are ours; N votes come before the first test",
    ),
)
