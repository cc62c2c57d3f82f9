"""What a completion looks like in each regime of the lab."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from allotment.errors import ConfigError

SCRATCHPAD_ALPHABET = "abcdefghijklmnopqrstuvwxyz"
MAX_ANSWER = 10


@dataclass(frozen=True)
class Regime:
    """The form of a completion: ``scratchpad`` free characters and ``=`` before the answer, or the answer alone.

    The regimes ``countdown`` and ``pronunciation`` are answers alone on tasks of their own, where a prompt has several
    right ones; ``pronunciation`` has a policy of its own, too, and its answers are phonemes, not characters.

    The free characters stand for the free-form reasoning of a language model: they carry score-function variance that
    is independent of the reward, as VIP's variance model assumes. How far the model is off in either regime is in
    docs/experiments/.
    """

    name: str
    scratchpad: int
    max_answer: int = MAX_ANSWER
    has_many_answers: bool = False
    """Whether a prompt may have several right answers."""

    @property
    def answer_start(self) -> int:
        """Number of tokens before the answer."""
        return self.scratchpad + 1 if self.scratchpad else 0

    @property
    def max_tokens(self) -> int:
        """Longest completion that is generated, end token included."""
        return self.answer_start + self.max_answer + 1

    def target(self, answer: str, random: np.random.Generator) -> str:
        """A completion to imitate in the warm start: random letters, ``=``, the answer."""
        if not self.scratchpad:
            return answer
        return "".join(random.choice(list(SCRATCHPAD_ALPHABET), self.scratchpad)) + "=" + answer

    def answer_of(self, completion: str) -> str | None:
        """The answer in a completion, None where the form is broken."""
        if not self.scratchpad:
            return completion
        return completion[self.answer_start :] if completion[self.scratchpad : self.answer_start] == "=" else None


PRONUNCIATION = Regime("pronunciation", 0, max_answer=20, has_many_answers=True)
_ALL = (
    Regime("scratchpad", 5),
    Regime("short", 0),
    Regime("countdown", 0, max_answer=11, has_many_answers=True),
    PRONUNCIATION,
)
REGIMES = {regime.name: regime for regime in _ALL}


def regime_named(name: str) -> Regime:
    """The regime of that name. Raises ConfigError: there is none."""
    if name not in REGIMES:
        raise ConfigError("unknown regime", got=repr(name), allowed=sorted(REGIMES), fix="choose one of them")
    return REGIMES[name]
