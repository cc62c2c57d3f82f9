"""``allotment audit``: how good would each predictor have been on a run that happened?"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from allotment.audit.embeddings import prompt_embeddings
from allotment.audit.log import Log
from allotment.audit.predictors import CONTESTANTS, USUAL, Name, Prompts, chosen
from allotment.audit.reading import read_log
from allotment.audit.replaying import RANGES, Replay, Settings, replay
from allotment.config import EstimatorName
from allotment.errors import MissingExtraError
from allotment.prediction import distinct_parts, text_features

ASSUMED_ORDER = "order assumed: the log does not say which prompts shared a step; one random order for every epoch"


@dataclass(frozen=True)
class Audit:
    """Replay a log of success counts: what would each predictor have predicted and allocated, and how well?"""

    log: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="LOG.jsonl")]
    """A line a prompt (prompt_id, prompt, rollouts_per_visit, successes), or the rollouts.jsonl of a run."""
    predictor: Annotated[tuple[tuple[Name, ...], ...], tyro.conf.UseAppendAction] = ()
    """Predictors to replay; by default all but k-nearest that can do with what the log holds."""
    budget_per_prompt: Annotated[int, tyro.conf.arg(metavar="N")] = 8
    """Rollouts of a step, divided by its prompts."""
    lower: Annotated[int, tyro.conf.arg(name="min", metavar="L")] = 3
    """Least rollouts of a prompt."""
    upper: Annotated[int, tyro.conf.arg(name="max", metavar="U")] = 32
    """Most rollouts of a prompt."""
    estimator: EstimatorName = "rloo"
    """Gradient estimator whose variance is priced and scored."""
    batch: int = 128
    """Prompts of a step, where the log does not say which prompts shared a step."""
    seed: int = 0
    """Fixes the assumed order of the prompts, and the order among prompts of equal price."""
    embeddings: Annotated[Path | None, tyro.conf.arg(metavar="FILE.npy")] = None
    """Embeddings of the prompts, a row a prompt in the order of the log; read if it is there, else written."""
    json: bool = False
    """Print one JSON object instead of tables."""

    def run(self) -> None:
        """Print the figures of every predictor for each range of epochs."""
        settings = Settings(
            self.budget_per_prompt, self.lower, self.upper, self.estimator, batch=self.batch, seed=self.seed
        )
        console = Console(stderr=True)
        log = read_log(self.log)
        prompts, notes = self._prompts(log, console)
        names = chosen(self._named, prompts.embeddings is not None)
        results: dict[Name, Replay] = {}
        with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
            for name in names:
                task = progress.add_task(name, total=len(log.batches(settings.batch, settings.seed)))
                entrant = CONTESTANTS[name]
                results[name] = replay(
                    log,
                    entrant.make(prompts),
                    settings,
                    plug_in=entrant.plug_in,
                    on_batch=lambda task=task: progress.advance(task),  # type: ignore[misc]
                )
        if self.json:
            print(json.dumps({"predictors": _figures(results), **self._conditions(log, notes)}, allow_nan=False))
        else:
            _print_tables(results, self._conditions(log, notes))

    @property
    def _named(self) -> tuple[Name, ...]:
        return tuple(name for group in self.predictor for name in group)

    def _prompts(self, log: Log, console: Console) -> tuple[Prompts, tuple[str, ...]]:
        """The prompts, with embeddings and features if a predictor takes them and they can be had, and the notes."""
        bare = Prompts(log.ids)
        wanted = {CONTESTANTS[name].embeddings for name in self._named or USUAL}
        if wanted == {"unused"}:
            return bare, log.notes
        log = _with_texts_of_the_lab(log, self.log)
        try:
            with console.status(f"embedding {len(log.ids)} prompts"):
                embeddings = prompt_embeddings(log, self.embeddings)
        except MissingExtraError:
            if self._named and "needed" in wanted:
                raise
            return bare, (*log.notes, "embedding model not installed (allotment[train]): replayed without embeddings")
        if embeddings is None:
            return bare, (*log.notes, "the log has no prompt texts: replayed without embeddings")
        return Prompts(log.ids, embeddings, text_features(distinct_parts(log.texts)) if log.texts else None), log.notes

    def _conditions(self, log: Log, notes: tuple[str, ...]) -> dict[str, Any]:
        assumed = log.order_is_assumed
        return {
            "log": str(self.log),
            "prompts": len(log.ids),
            "visits": len(log.visit),
            "batch": self.batch if assumed else None,
            "assumed_order": assumed,
            "budget_per_prompt": self.budget_per_prompt,
            "min": self.lower,
            "max": self.upper,
            "estimator": self.estimator,
            "seed": self.seed,
            "notes": [*notes, *([ASSUMED_ORDER] if assumed else [])],
        }


def _with_texts_of_the_lab(log: Log, path: Path) -> Log:
    """The log with its prompts' texts if it lies in a run directory of the lab, whose prompts are made by rule."""
    if log.texts is not None or not (path.parent / "config.json").exists():
        return log
    try:
        from allotment.tasks.mixture import load_mixture
    except ImportError:
        return log
    questions = {problem.id: problem.question for problem in load_mixture().pool}
    texts = tuple(questions[prompt] for prompt in map(str, log.ids) if prompt in questions)
    return replace(log, texts=texts) if len(texts) == len(log.ids) else log


def _figures(results: Mapping[Name, Replay]) -> dict[str, Any]:
    """The figures of every predictor and range; a figure that cannot be had is null."""
    return {
        name: {
            span: {key: None if math.isnan(value) else value for key, value in asdict(figures).items()}
            for span, figures in result.by_range().items()
        }
        for name, result in results.items()
    }


def _print_tables(results: Mapping[Name, Replay], conditions: Mapping[str, Any]) -> None:
    console = Console()
    columns = ("variance ratio", "log loss", "MAE", "calibration", "coverage")
    for span in RANGES:
        rows = {name: figures for name, result in results.items() if (figures := result.by_range().get(span))}
        if not rows:
            continue
        visits = next(iter(rows.values())).visits
        table = Table(title=f"epoch {span}: {visits:,} visits", box=box.SIMPLE_HEAD, title_justify="left", padding=0)
        table.add_column("predictor", no_wrap=True, min_width=17)
        for column in columns:
            table.add_column(column, justify="right")
        for name, row in rows.items():
            cells = (row.variance_ratio, row.log_loss, row.mae, row.calibration_error, row.coverage90)
            table.add_row(name, *(f"{cell:.3f}" for cell in cells))
        console.print(table)
    said = {key: value for key, value in conditions.items() if key != "notes" and value is not None}
    print(", ".join(f"{key} {value}" for key, value in said.items()))
    for note in conditions["notes"]:
        print(f"note: {note}")
    for name, result in results.items():
        print(f"{name}: {_verdict(result)}")


def _verdict(result: Replay) -> str:
    """One line: the variance over all visits, and the interval's honesty."""
    figures = result.figures()
    if figures is None or math.isnan(figures.variance_ratio):
        return "no visit says anything about variance"
    ratio = figures.variance_ratio
    change = f"gradient variance {ratio:.3f} of uniform's over all visits at the same rollouts"
    if abs(ratio - 1) < 0.005:
        return f"{change}: no different from uniform"
    return f"{change}: {100 * abs(1 - ratio):.0f} % {'less' if ratio < 1 else 'more'}"
