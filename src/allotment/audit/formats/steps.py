"""Which step a rollout is of, where a column does not say: names of files and folders, the order of rows."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

NUMBERED = re.compile(
    r"(?:^|.*[^a-z0-9])(?:global_?|train(?:ing)?_?|policy_?|weight_?)?(?:step|version|iter|iteration|v)[_\-]?([0-9]{1,15})(?:[^0-9].*)?"
)
"""A name with the number of a step, in lower case."""


def numbered(name: str) -> int | None:
    """The step that the name of a file or folder holds: ``12``, ``step_12``, ``global_step_12_evals``; else None."""
    if name.isdecimal() and name.isascii() and len(name) < 16:
        return int(name)
    found = NUMBERED.fullmatch(name.lower())
    return int(found[1]) if found else None


def step_of(path: Path) -> int | None:
    """The step that a file belongs to by its name, or by that of its folder."""
    own = numbered(path.name.partition(".")[0])
    return numbered(path.parent.name) if own is None else own


class Visits:
    """Numbers the visits of each prompt by the order of rows, where no step is known.

    A row with several rollouts is a visit; rows of one rollout are one as long as they follow one another.
    """

    def __init__(self) -> None:
        self._visits: Counter[int | str] = Counter()
        self._last: int | str | None = None
        self._rows = self._blocks = 0

    def __bool__(self) -> bool:
        return bool(self._visits)

    def number(self, key: int | str, *, is_whole: bool) -> int:
        """The visit that the next row of a prompt belongs to, from 1 on."""
        if is_whole or key != self._last:
            self._visits[key] += 1
        if not is_whole:
            self._rows += 1
            self._blocks += key != self._last
        self._last = None if is_whole else key
        return self._visits[key]

    @property
    def are_mixed(self) -> bool:
        """Whether rows of one prompt do not follow one another, so that nothing tells its visits apart."""
        return self._rows < 1.5 * self._blocks and self._blocks > len(self._visits)

    @property
    def note(self) -> str:
        """What a reader should know."""
        if self.are_mixed:
            return "no step is logged, and a prompt's rows do not stand together: they are taken for one visit"
        return "no step is logged: visits are numbered by the order of rows"
