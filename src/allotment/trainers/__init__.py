"""Who trains a run of the command line. A trainer is a package with a declaration, and a line in the registry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from allotment.config import RunConfig
from allotment.planning.contract import Capability
from allotment.registry import TRAINERS

if TYPE_CHECKING:
    from allotment.run_logs.directory import RunDirectory


class RunningTrainer(Protocol):
    """A run that is ready to be made, or continued."""

    def run(self, directory: RunDirectory, on_step: Callable[[dict[str, Any]], None]) -> None:
        """Train to the last step, from the newest checkpoint if there is one; ``on_step`` sees every metrics line."""
        ...


@dataclass(frozen=True)
class TrainerEntry:
    """The declaration of a trainer by name; its module loads nothing heavy."""

    config: type[RunConfig]
    """Its configuration: the flags of ``allotment train NAME``."""
    make: Callable[[Any, Path], RunningTrainer]
    """From a configuration and the run's directory; raises :class:`~allotment.errors.AllotmentError` on what it cannot
    carry out."""
    capability: Capability
    """What of planners, selectors and objectives it can carry out."""
    summary: str
    """What it trains, in words."""
    texts: Callable[[Any], dict[str, str]] = lambda config: {}
    """The text of each prompt of a configuration, by id; raises AllotmentError, ImportError or OSError where the data
    set cannot be read."""
    measured: str = "as the trainer reports it"
    """How success on pool and held-out prompts is found, in words."""
    has_oracle: bool = False
    """Whether the planner ``oracle`` is a yardstick of its comparisons."""


def trainer_of(config: RunConfig, path: Path) -> RunningTrainer:
    """The trainer of a configuration, for a run in ``path``.

    Raises:
        AllotmentError: the trainer refuses the configuration, or its packages are missing.
    """
    return TRAINERS[trainer_name(config)].make(config, path)


def trainer_name(config: RunConfig) -> str:
    """The name of the trainer whose configuration this is."""
    return str(getattr(config, "trainer"))  # noqa: B009 (a field of every trainer's own class)
