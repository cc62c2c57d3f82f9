"""What a reader could not use."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class LeftOut:
    """What a reader could not use, counted by reason, each with the place where it was first met."""

    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, what: str, path: Path, number: int | None = None) -> None:
        """One more ``what`` (singular), in line or row ``number`` of ``path``."""
        self.counts[what] = self.counts.get(what, 0) + 1
        if what not in self.first:
            self.first[what] = path.name if number is None else f"{path.name}, {number}"

    def notes(self) -> tuple[str, ...]:
        """A line for each reason."""
        return tuple(f"left out: {count:,} × {what} (first: {self.first[what]})" for what, count in self.counts.items())
