"""Training without labels: the answer most rollouts of a prompt agree on stands for the right one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from allotment.checks import check_whole
from allotment.errors import InvalidInputError
from allotment.methods.selectors.subsets import first_of_groups
from allotment.selection.base import Scored, Selection, SelectorNeeds, Stateless
from allotment.types import IntArray


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
