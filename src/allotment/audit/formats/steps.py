"""What names of files and folders say: the step, the run, evaluations; and visits by the order of rows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Iterable, Mapping
from pathlib import Path

NUMBERED = re.compile(
    r"(?:^|.*[^a-z0-9])(?:global_?|train(?:ing)?_?|policy_?|weight_?)?(?:step|version|iter|iteration|checkpoint|ckpt|v)[_\-]?([0-9]{1,15})(?:[^0-9].*)?"
)
"""A name with the number of a step, in lower case."""
STEP_FOLDER = re.compile(
    r"(?:global_?|train(?:ing)?_?|policy_?|weight_?)?(?:step|version|iter|iteration|checkpoint|ckpt)[_\-]?([0-9]{1,15})(?:_[a-z]+)?"
    r"|([0-9]{1,15})"
)
"""The name of a folder with what belongs to one step."""
EVALUATIONS = {"val", "valid", "validation", "eval", "evals", "evaluation", "evaluations"}
"""Words in the names of files and folders with rollouts that were not trained on."""
TRAINING, TESTS = {"train", "training"}, {"test", "tests", "dev"}
"""Words of the second kind mean the same beside files with words of the first."""


def numbered(name: str) -> int | None:
    """The step that the name of a file or folder holds: ``12``, ``step_12``, ``global_step_12_evals``; else None."""
    if name.isdecimal() and name.isascii() and len(name) < 16:
        return int(name)
    found = NUMBERED.fullmatch(name.lower())
    return int(found[1]) if found else None


def step_of(path: Path) -> int | None:
    """The step that a file belongs to by its name, or by that of a folder that it is in."""
    own = numbered(path.name.partition(".")[0])
    own = numbered(path.parent.name) if own is None else own
    if own is not None:
        return own
    return next((step for name in path.parts[-3:-5:-1] if (step := _step_folder(name)) and not name.isdecimal()), None)


def no_step_folders(own_steps: Mapping[Path, int | None], top: Path) -> set[Path]:
    """The folders below ``top`` that are not of one step, whatever their name: a file in them is of another step.

    Args:
        own_steps: for each file the step that its rows or its name tell.
        top: the folder that was given.
    """
    return {
        folder
        for path, own in own_steps.items()
        for folder in path.parents
        if own is not None and folder.is_relative_to(top) and _step_folder(folder.name) not in (None, own)
    }


def place_of(path: Path, top: Path, no_steps: Container[Path]) -> tuple[Path, tuple[str, ...]]:
    """The folder of the run that a file belongs to, and the names of the folders below that of its step.

    Args:
        path: the file.
        top: the folder that was given.
        no_steps: folders that are not of one step.
    """
    folders = path.relative_to(top).parts[:-1]
    for at in range(len(folders) - 1, -1, -1):
        if _step_folder(folders[at]) is not None and Path(top, *folders[: at + 1]) not in no_steps:
            return Path(top, *folders[:at]), folders[at + 1 :]
    return path.parent, ()


def _step_folder(name: str) -> int | None:
    """The step of a folder whose whole name says so: ``12``, ``step_12``, ``iteration_000012``, ``step_12_evals``."""
    found = STEP_FOLDER.fullmatch(name.lower())
    return int(found[1] or found[2]) if found else None


def evaluations(paths: Iterable[Path], top: Path) -> set[Path]:
    """The files whose name, or that of a folder below the one that was given, says that they are no training."""
    words = {p: set(re.split(r"[^a-z]+", "/".join(p.relative_to(top).parts).lower())) for p in paths}
    say_so = EVALUATIONS | (TESTS if any(TRAINING & found for found in words.values()) else set())
    return {path for path, found in words.items() if say_so & found}


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
