"""The right answers of prompts that have several, whatever the task."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from allotment.tasks import countdown, pronunciation
from allotment.tasks.mixture import Problem

_BY_DATASET: Mapping[str, Callable[[Problem], Mapping[str, str]]] = {
    "countdown": countdown.solutions_of,
    pronunciation.DATASET: pronunciation.pronunciations,
}


def has_several(problem: Problem) -> bool:
    """Whether its task allows several right answers."""
    return problem.dataset in _BY_DATASET


def right_answers(problem: Problem) -> Mapping[str, str]:
    """The right answers of such a problem, each with its form: answers of one form do not count as different."""
    return _BY_DATASET[problem.dataset](problem)
