"""Where the lines of ``metrics.jsonl`` may go besides: tensorboard, wandb, trackio. A failing sink stops no run."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol

from allotment.errors import needs_extra

log = logging.getLogger("allotment")

SinkName = Literal["tensorboard", "wandb", "trackio"]
Row = Mapping[str, Any]


class Sink(Protocol):
    """Takes a run's lines."""

    def write(self, row: Row) -> None:
        """One line of ``metrics.jsonl``: ``step``, and figures."""
        ...

    def close(self) -> None:
        """Write what is left."""
        ...


class Sinks:
    """Several sinks as one; each that fails is named once and left out from then on."""

    def __init__(self, sinks: Mapping[str, Sink]) -> None:
        self._sinks = dict(sinks)

    def write(self, row: Row) -> None:
        """Hand a line to every sink that still works."""
        self._each("write", row)

    def close(self) -> None:
        """Close every sink that still works."""
        self._each("close")

    def _each(self, method: str, *given: Row) -> None:
        for name, sink in list(self._sinks.items()):
            try:
                getattr(sink, method)(*given)
            except Exception as error:
                log.warning("%s takes no more figures: %s: %s", name, type(error).__name__, error)
                del self._sinks[name]


@contextmanager
def opened(names: Sequence[SinkName], run: Path, settings: Row) -> Iterator[Sinks]:
    """The sinks of these names for the run directory ``run``, closed at the end. Raises MissingExtraError: a sink's
    package is not installed.
    """
    sinks: dict[str, Sink] = {}
    for name in names:
        with needs_extra(name):
            package = import_module(name)
        kind: Any = _Tensorboard if name == "tensorboard" else partial(_Tracker, package)
        try:
            sinks[name] = kind(run, settings)
        except Exception as error:
            log.warning("%s cannot be opened and gets no figures: %s: %s", name, type(error).__name__, error)
    with closing(Sinks(sinks)) as together:
        yield together


class _Tensorboard:
    """Event files in the run directory."""

    def __init__(self, run: Path, settings: Row) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(run / "tensorboard"))

    def write(self, row: Row) -> None:
        for name, value in _figures(row).items():
            self._writer.add_scalar(name, value, row["step"])

    def close(self) -> None:
        self._writer.close()


class _Tracker:
    """A run in the project "allotment", named as its directory: wandb, or trackio, which has the same calls."""

    def __init__(self, package: Any, run: Path, settings: Row) -> None:
        self._run = package.init(project="allotment", name=run.name, config=dict(settings))

    def write(self, row: Row) -> None:
        self._run.log(_figures(row), step=row["step"])

    def close(self) -> None:
        self._run.finish()


def _figures(row: Row) -> dict[str, float]:
    return {name: value for name, value in row.items() if name != "step" and isinstance(value, int | float)}
