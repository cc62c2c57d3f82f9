"""Strict verification: no partial credit, no second spelling."""

from __future__ import annotations

from allotment.tasks.answers import has_several, right_answers
from allotment.tasks.entries import scorer
from allotment.tasks.mixture import Problem


def is_correct(problem: Problem, answer: str) -> bool:
    """Whether ``answer`` is exactly the reference answer, and reasoning-gym's verifier gives it the full score.

    reasoning-gym's scores alone are too generous to learn from: almost every task gives partial credit, some accept
    trailing text or other spellings of a number, and spell_backward scores a right answer followed by junk at
    0.9999999999999998 and ignores case. All tasks of the mixture have one right answer, so exact equality is a fair
    rule. Countdown has many: those of :func:`~allotment.tasks.countdown.solutions`, to all of which its own verifier
    gives the full score. A word has the pronunciations that the dictionary lists.
    """
    if has_several(problem):
        return answer in right_answers(problem)
    if answer != problem.answer:
        return False
    return float(scorer(problem.dataset)(answer, dict(problem.entry))) == 1.0
