"""OptPO: votes until one answer is sure enough, for training without labels (arXiv 2512.02882)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Unpack

import numpy as np
import numpy.typing as npt

from allotment.allocation.exact import check_bounds
from allotment.checks import check_choice, check_setting, check_whole
from allotment.errors import InvalidInputError
from allotment.methods.selectors.subsets import first_of_groups
from allotment.planning.contract import Contract, PlannerEntry
from allotment.planning.outcome import Outcome
from allotment.planning.planner import Common, Planner
from allotment.planning.rounds import Step
from allotment.registry import Row
from allotment.selection import Scored, Selection, SelectorNeeds, Stateless
from allotment.state import State, Stateful
from allotment.types import IntArray, Plan, PromptId

Evidence = Literal["bayes_factor", "posterior"]
"""What is compared with the threshold: the odds of the leader against the runner-up, or against all others."""
Retained = Literal["all", "first"]
"""Which votes are trained on: all, or the first N of each prompt."""


class PseudoLabels(Stateless):
    """Majority pseudo-rewards: 1 for a rollout whose answer leads the vote of its prompt, 0 for any other.

    Verified rewards are not looked at. Of answers with equally many votes the one that came first leads. A rollout
    without an answer votes for nothing and gets 0, so a prompt without any answer has no advantage. The estimator of
    the run turns pseudo-rewards into advantages among the retained rollouts (TTRL; OptPO, arXiv 2512.02882, step 5).

    It optimises the probability of the answer that leads, right or wrong. With two answers and n votes the weight of
    grad p is ``E[sign(2 k - n) k (n - k)] / (n (n - 1) p (1 - p))``, k ~ Binomial(n, p), by RLOO: towards 1 where the
    right answer is the modal one, towards -1 where it is not.

    Args:
        retained: rollouts of a prompt that are trained on, those that came first; all if None. Where the votes
            decided how many there are, the first few are a fair sample of the policy and all of them are not.

    Raises:
        InvalidInputError: ``retained`` is below 2.
    """

    NEEDS = SelectorNeeds(frozenset({"answers"}), brings=frozenset({"rewards"}))

    def __init__(self, *, retained: int | None = None) -> None:
        if retained is not None:
            check_whole("retained", retained, 2)
        self.retained = retained

    def select(self, scored: Scored) -> Selection:
        """The retained rollouts with their pseudo-rewards.

        Raises:
            InvalidInputError: there are no answers.
        """
        answers_N = needed_answers(scored.answers_N)
        order = np.argsort(scored.numbers_N)
        tally = Tally.of([answers_N[i] for i in order], scored.rows_N[order], len(scored.prompt_ids))
        rewards_N = np.zeros(len(scored))
        rewards_N[order] = tally.codes_N == tally.leader_Q[scored.rows_N[order]]
        weights_N = np.ones(len(scored))
        if self.retained is not None:
            room_Q = np.full(len(scored.prompt_ids), self.retained)
            weights_N = first_of_groups(scored.rows_N, room_Q, scored.numbers_N).astype(np.float64)
        return Selection(weights_N, rewards_N=rewards_N, baseline="kept", denominator="kept")


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
    (:class:`PseudoLabels`): what is optimised is the probability of the
    policy's own modal answer, right or wrong.

    Under the model a prompt is stopped by the Bayes factor with a wrong leader with probability at most
    (m - 1) / threshold; of those that the posterior stops, at most 1 / (1 + threshold) have a wrong one. Prompts that
    reach M have the errors of a plain majority; with p0 near 1/m these are almost all.
    Stopping biases the votes: at m = 4, p0 = 0.5 and a lead of 3 the leader's share is 0.62 on average instead of
    0.5, and one group in seven is unanimous. ``retained="first"`` trains on the first N of each prompt alone, which
    stopping does not touch.

    M is the number of distinct answers seen and one more, a reconstruction; the paper may stop before N votes and then
    go on sampling up to N with the label kept. Its tables and code are not available.

    Args:
        budget: C, most rollouts of a step; C // Q is M.
        threshold: odds with which voting stops, > 1; 19 is a probability of 95 %.
        p0: probability with which a vote is for the consensus, above 1/m.
        classes: m; if None the distinct answers of a prompt so far and one more.
        votes: rollouts of an open prompt in a round; 1 is the test after every vote, more means fewer rounds.
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


@dataclass(frozen=True, eq=False)
class Tally:
    """The votes of Q prompts, each answer of each prompt a class of its own."""

    codes_N: IntArray
    """[N] number of the class each rollout votes for; -1 for none."""
    votes_C: IntArray
    """[C] votes of each class, >= 1."""
    rows_C: IntArray
    """[C] prompt of each class."""
    leader_Q: IntArray
    """[Q] class with most votes, the first to appear among equals; -2 where there is none."""
    first_Q: IntArray
    """[Q] votes of the leader."""
    second_Q: IntArray
    """[Q] votes of the runner-up, 0 where there is none."""

    @classmethod
    def of(cls, answers_N: Sequence[str | None], rows_N: IntArray, prompts: int) -> Tally:
        """Count."""
        classes: dict[tuple[int, str], int] = {}
        votes = zip(rows_N.tolist(), answers_N, strict=True)
        codes = [-1 if a is None else classes.setdefault((row, a), len(classes)) for row, a in votes]
        codes_N = np.array(codes, dtype=np.int64)
        votes_C = np.bincount(codes_N[codes_N >= 0], minlength=len(classes))
        rows_C = np.array([row for row, _ in classes], dtype=np.int64)
        order = np.lexsort((-votes_C, rows_C))  # stable: among equals the first to appear
        starts_Q = np.searchsorted(rows_C[order], np.arange(prompts))
        classes_Q = np.bincount(rows_C, minlength=prompts)
        padded = np.append(order, [0, 0])
        leader_Q = np.where(classes_Q > 0, padded[starts_Q], -2)
        votes_of = np.append(votes_C, 0)
        first_Q = np.where(classes_Q > 0, votes_of[padded[starts_Q]], 0)
        second_Q = np.where(classes_Q > 1, votes_of[padded[starts_Q + 1]], 0)
        return cls(codes_N, votes_C, rows_C, leader_Q, first_Q, second_Q)

    @property
    def classes_Q(self) -> IntArray:  # noqa: N802
        """[Q] distinct answers."""
        return np.bincount(self.rows_C, minlength=len(self.leader_Q))


def needed_answers(answers_N: tuple[str | None, ...] | None) -> tuple[str | None, ...]:
    """The answers.

    Raises:
        InvalidInputError: there are none.
    """
    if answers_N is None:
        raise InvalidInputError(
            "a method without labels was told no answers",
            got="rewards alone",
            allowed="the extracted answer of every rollout, None where there is none",
            fix="tell(plan, rewards, group_ids, answers=[...]); the rewards may be zeros",
        )
    return answers_N


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
