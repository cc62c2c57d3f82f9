"""``allotment train``: reinforcement learning in the lab, or with TRL."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from allotment.config import AnyTrainConfig, TrainConfig, TRLTrainConfig, train_config_named
from allotment.errors import ConfigError
from allotment.sinks import SinkName, opened
from allotment.trainers import trainer_of

OnStep = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class _Train:
    config: Annotated[Path | None, tyro.conf.arg(metavar="F.toml")] = None
    """TOML file with any of the settings; flags override it."""
    out: Path | None = None
    """Run directory; runs/TASK-PLANNER-sSEED by default, the task being the regime or the model."""
    resume: bool = False
    """Continue the run in --out, bit for bit; its settings are the defaults, only --steps may change."""
    sinks: tuple[SinkName, ...] = ()
    """Where metrics.jsonl goes besides."""
    dry_run: bool = False
    """Print the resolved configuration and stop."""

    def run(self) -> None:
        """Train, with live progress; the run directory holds everything afterwards."""
        config: AnyTrainConfig = self.settings  # type: ignore[attr-defined]
        out = self.out or Path("runs") / f"{config.task}-{config.planner}-s{config.seed}"
        if self.dry_run:
            print(config.to_json(), end="")
            return
        from allotment.run_logs.directory import RunDirectory, check_vacant

        if not is_main_process():
            trainer_of(config, out).run(RunDirectory(out), lambda row: None)
            return
        if not self.resume:
            check_vacant(out)  # before the seconds that a trainer takes
        trainer = trainer_of(config, out)  # before the directory: settings that it refuses leave none behind
        directory = RunDirectory.resume(out, config) if self.resume else RunDirectory.create(out, config)
        with opened(self.sinks, out, config.model_dump()) as sinks, show_progress(config) as on_step:

            def on_line(row: dict[str, Any]) -> None:
                sinks.write(row)
                on_step(row)

            trainer.run(directory, on_line)
        print(f"run directory: {out}")


@dataclass(frozen=True)
class TrainLab(_Train):
    """Train the lab's language model; the planner decides every prompt's number of rollouts."""

    settings: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(default_factory=TrainConfig)


@dataclass(frozen=True)
class TrainTRL(_Train):
    """Train a Hugging Face model with TRL; the planner decides every prompt's number of rollouts."""

    settings: Annotated[TRLTrainConfig, tyro.conf.arg(name="")] = tyro.MISSING


def command(arguments: Sequence[str]) -> tuple[type[_Train], dict[str, Any]]:
    """The form of the command for the trainer in ``arguments``, and ``{"default": ...}`` where there is one."""
    trainer, settings = defaults_of(arguments)
    form: Any = TrainTRL if trainer == "trl" else TrainLab
    return form, {} if settings is None else {"default": form(settings=settings)}


def is_main_process() -> bool:
    """Whether this is the only process, or the first of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def defaults_of(arguments: Sequence[str]) -> tuple[str, AnyTrainConfig | None]:
    """The trainer, and the defaults of its flags: those of the run to be resumed, else of the TOML file, else None.

    Raises:
        ConfigError: the TOML file does not fit, --resume has no --out, both files are named, or there is no such
            trainer.
        RunDirectoryError: there is no run to resume.
    """
    config, out = _value_of("--config", arguments), _value_of("--out", arguments)
    if "--resume" in arguments:
        if out is None or config is not None:
            raise ConfigError(
                "--resume continues the run in --out with the settings saved there",
                got=f"--out {out}, --config {config}",
                allowed="--resume --out DIR",
                fix="name the run directory, leave --config out",
            )
        from allotment.run_logs.directory import saved_config

        saved = saved_config(Path(out))
        return saved.trainer, saved
    trainer = _value_of("--trainer", arguments)
    if config is None:
        train_config_named(trainer or "lab")
        return trainer or "lab", None
    values = TrainConfig.toml_values(Path(config))
    trainer = trainer or str(values.get("trainer", "lab"))
    return trainer, train_config_named(trainer).from_values(values, config)


def _value_of(flag: str, arguments: Sequence[str]) -> str | None:
    for place, argument in enumerate(arguments):
        if argument == flag and place + 1 < len(arguments):
            return arguments[place + 1]
        if argument.startswith(flag + "="):
            return argument.removeprefix(flag + "=")
    return None


@contextmanager
def show_progress(config: AnyTrainConfig) -> Iterator[OnStep]:
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
        parts.append(f"groups without signal {row['zero_variance_groups']:.0%}")
    return " · ".join(parts)
