"""``allotment train TRAINER``: reinforcement learning in the lab, with TRL, or with a trainer of another package."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from allotment.config import Config, RunConfig
from allotment.errors import ConfigError
from allotment.registry import TRAINERS
from allotment.run_logs.directory import RunDirectory, check_vacant, saved_config
from allotment.run_logs.one_writer import one_writer
from allotment.sinks import SinkName, opened
from allotment.trainers import trainer_of

OnStep = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Source:
    """Where the defaults of the settings come from; read before the settings themselves."""

    config: Annotated[Path | None, tyro.conf.arg(metavar="F.toml")] = None
    """TOML file with any of the settings; flags override it."""
    out: Path | None = None
    """Run directory; runs/TASK-PLANNER-sSEED by default, the task being the regime or the model."""
    resume: bool = False
    """Continue the run in --out, bit for bit; its settings are the defaults, only --steps may change."""

    def values(self) -> dict[str, Any] | None:
        """The settings of the run to be resumed, else those of the TOML file; None where there is neither.

        Raises:
            ConfigError: the TOML file cannot be read, --resume has no --out, or both files are named.
            RunDirectoryError: there is no run to resume.
        """
        if self.resume:
            if self.out is None or self.config is not None:
                raise ConfigError(
                    "--resume continues the run in --out with the settings saved there",
                    got=f"--out {self.out}, --config {self.config}",
                    allowed="--resume --out DIR",
                    fix="name the run directory, leave --config out",
                )
            return saved_config(self.out).model_dump()
        return None if self.config is None else Config.toml_values(self.config)


@dataclass(frozen=True)
class _Train(Source):
    sinks: tuple[SinkName, ...] = ()
    """Where metrics.jsonl goes besides."""
    dry_run: bool = False
    """Print the resolved configuration and stop."""

    def run(self) -> None:
        """Train, with live progress; the run directory holds everything afterwards."""
        config: RunConfig = self.settings  # type: ignore[attr-defined]
        out = self.out or Path("runs") / f"{config.task}-{config.planner}-s{config.seed}"
        if self.dry_run:
            print(config.to_json(), end="")
            return
        if not is_main_process():
            trainer_of(config, out).run(RunDirectory(out), lambda row: None)
            return
        if not self.resume:
            check_vacant(out)  # before the seconds that a trainer takes
        with one_writer(out):
            trainer = trainer_of(config, out)  # before the directory: settings that it refuses leave none behind
            directory = RunDirectory.resume(out, config) if self.resume else RunDirectory.create(out, config)
            with opened(self.sinks, out, config.model_dump()) as sinks, show_progress(config) as on_step:

                def on_line(row: dict[str, Any]) -> None:
                    sinks.write(row)
                    on_step(row)

                trainer.run(directory, on_line)
        print(f"run directory: {out}")


def split_trainer(arguments: Sequence[str], positionals: int = 0) -> tuple[str, list[str], dict[str, Any] | None]:
    """The trainer that the words after ``train`` or ``compare`` name, the other words, and the defaults of its flags.

    ``positionals``: words that the command takes without a flag; where one more stands first, it names the trainer.

    Raises:
        ConfigError, RunDirectoryError: as :meth:`Source.values`.
    """
    words = list(arguments)
    first = words[: positionals + 1]
    is_named = len(first) > positionals and not any(word.startswith("-") for word in first)
    named = TRAINERS.canonical(words.pop(0)) if is_named or (first[:1] and first[0] in TRAINERS) else None
    source, _ = tyro.cli(Source, args=words, return_unknown_args=True, add_help=False)
    values = source.values()
    return named or str((values or {}).get("trainer", "lab")), words, values


def command(arguments: Sequence[str]) -> tuple[Any, list[str]]:
    """The form of ``allotment train`` for the trainer in ``arguments``, with its defaults, and the words to parse."""
    trainer, words, values = split_trainer(arguments)
    config = TRAINERS[trainer].config
    settings = None if values is None else config.from_values({**values, "trainer": trainer}, "the settings")
    described = f"Train {TRAINERS[trainer].summary}; the planner decides every prompt's number of rollouts."
    return with_settings("Train", _Train, config, settings, described), words


def with_settings(name: str, base: type, config: type[RunConfig], settings: RunConfig | None, text: str) -> Any:
    """The form of a command: ``base`` with the flags of ``config`` and the defaults in ``settings``."""
    required = settings is None and any(info.is_required() for info in config.model_fields.values())
    default: Any = tyro.MISSING if required else field(default_factory=lambda: settings or config())
    flags = ("settings", Annotated[config, tyro.conf.arg(name="")], default)
    form: Any = make_dataclass(name, [flags], bases=(base,), frozen=True, kw_only=True)
    form.__doc__ = text
    return form


def is_main_process() -> bool:
    """Whether this is the only process, or the first of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def show_progress(config: RunConfig) -> Iterator[OnStep]:
    """A live bar and the newest figures on a terminal, one plain line a step elsewhere."""
    console = Console()
    if not console.is_terminal:
        yield lambda row: console.print(_line(row), soft_wrap=True, highlight=False)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    progress, figures = Progress(*columns), Text()
    task = progress.add_task(f"{config.planner} seed {config.seed}", total=config.steps)
    last: dict[str, Any] = {}
    with Live(Group(progress, figures), console=console):

        def on_step(row: dict[str, Any]) -> None:
            last.update(row)  # evaluations come every few steps: keep showing the newest
            progress.update(task, completed=row["step"])
            figures.plain = _line(last)

        yield on_step


def _line(row: dict[str, Any]) -> str:
    """One step for a person: only what the row has."""
    parts = [f"step {row['step']}"]
    if "pool_success" in row:
        parts.append(f"success pool {row['pool_success']:.3f} held out {row['held_out_success']:.3f}")
    if "budget" in row:
        parts.append(f"rollouts {row['budget']} ({row['min_count']} to {row['max_count']} a prompt)")
        parts.append(f"observed {row['success']:.2f}")
    if "verified_success" in row:
        parts.append(f"verified {row['verified_success']:.2f}")
    if "predicted_success" in row:
        parts.append(f"predicted {row['predicted_success']:.2f}")
    if "zero_variance_groups" in row:
        parts.append(f"groups of equal rewards {row['zero_variance_groups']:.0%}")
    return " · ".join(parts)
