"""``allotment audit``: what would VIP have saved on a run that happened, and how good is each predictor?"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from allotment.audit.equivalence import Interval
from allotment.audit.formats.base import Columns, Source
from allotment.audit.log import Log
from allotment.audit.predictors import USUAL, Prompts, chosen, predictor_for, prompt_embeddings
from allotment.audit.reading import find_sources, read_source
from allotment.audit.replaying import RANGES, Replay, Settings, replay
from allotment.audit.summary import Audited, Lengths, Summary, summarise
from allotment.config import EstimatorName, by_name
from allotment.errors import AllotmentError, InvalidInputError, MissingExtraError
from allotment.prediction import distinct_parts, text_features
from allotment.registry import LOG_FORMATS, PREDICTORS, TRAINERS
from allotment.report.audit_page import write_audit
from allotment.run_logs.directory import saved_config
from allotment.trainers import trainer_name

ASSUMED_ORDER = "order assumed: the log does not say which prompts shared a step; one random order for every epoch"
MOST_EMBEDDED = 60_000
"""Characters of prompts, 1,000 of each at most, that are embedded without being asked for: about 12 s on one core."""
USUAL_BOUNDS = (3, 32)
"""Least and most rollouts of a prompt where none are given, as in the paper; twice the budget where that is more."""

PredictorName = Annotated[str, by_name(PREDICTORS)]


def _formats(default: str) -> str:
    """For --help: the formats' names, those of other packages too."""
    return f"(default: {default}; or {', '.join(LOG_FORMATS.names)})"


@dataclass(frozen=True)
class Audit:
    """Replay the logs of runs: what would VIP have saved, what would each predictor have predicted, and how well?

    Reads the rollouts.jsonl of a run, success counts a prompt, verl's dumped rollouts, TRL's completions, and any
    JSONL, CSV or parquet file with named columns. Several runs, also in one folder, are audited one by one.
    """

    logs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="LOG...")]
    """Files, or folders with the files of a run or of several."""
    format: Annotated[str, tyro.conf.arg(metavar="NAME", help_behavior_hint=_formats)] = "auto"
    """Format of the files; columns: what --prompt, --step, --reward and so on name."""
    columns: Columns = field(default_factory=Columns)
    success_above: Annotated[float | None, tyro.conf.arg(metavar="REWARD")] = None
    """A rollout with a larger reward succeeded; by default the middle between the smallest and the largest reward."""
    predictor: Annotated[tuple[tuple[PredictorName, ...], ...], tyro.conf.UseAppendAction] = ()
    """Predictors to replay; by default all but k-nearest that can do with what the log holds."""
    budget_per_prompt: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Rollouts of a step, divided by its prompts; by default the median of the log's groups."""
    bounds: Annotated[tuple[int, int] | None, tyro.conf.arg(metavar="L U")] = None
    """Least and most rollouts of a prompt; by default 3 and 32, or twice the budget if that is more."""
    estimator: EstimatorName = "rloo"
    """Gradient estimator whose variance is priced and scored."""
    batch: int = 128
    """Prompts of a step, where the log does not say which prompts shared a step."""
    seed: int = 0
    """Fixes the assumed order of the prompts, the order among prompts of equal price, and the bootstrap."""
    embeddings: Annotated[Path | None, tyro.conf.arg(metavar="FILE.npy")] = None
    """Embeddings of the prompts, a row a prompt in the order of the log; read if it is there, else written."""
    json: bool = False
    """Print one JSON object instead of tables."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE.html")] = None
    """Write a page too: one HTML file that opens from disk."""

    def run(self) -> None:
        """Print what each log says, under which conditions, and every predictor's figures by range of epochs."""
        least, _ = self.bounds or USUAL_BOUNDS
        self._settings(self.budget_per_prompt or least)  # unusable settings before any file is read
        sources = self._sources()
        found, refused = [], []
        for source in sources:
            try:
                found.append(self._audit(source))
            except InvalidInputError as error:
                if len(sources) == 1:
                    raise
                refused.append(error)
                print(f"left out: {error}", file=sys.stderr)
        if not found:
            raise refused[0]
        figures = [shown for _, shown in found]
        if self.json:
            print(json.dumps(figures[0] if len(sources) == 1 else {"runs": figures}, allow_nan=False))
        if self.out is not None:
            print(f"page: {write_audit([run for run, _ in found], self.out)}", file=sys.stderr)

    def _sources(self) -> list[Source]:
        named = None if self.format == "auto" else self.format
        sources = [source for path in self.logs for source in find_sources(path, named, self.columns)]
        if not sources or (len(sources) > 1 and self.embeddings is not None):
            raise InvalidInputError(
                "which log?" if not sources else "one file of embeddings does not serve several runs",
                got=", ".join(str(source.path) for source in sources[:5]) or "none",
                allowed="one or more logs; one with --embeddings",
                fix="pass a log" if not sources else "pass one run, or leave --embeddings out",
            )
        return sources

    def _audit(self, source: Source) -> tuple[Audited, dict[str, Any]]:
        """Audit one run; print it unless JSON is wanted. What the page and what JSON shows."""
        console = Console(stderr=True)
        log = read_source(source, self.success_above)
        settings, budget_notes = self._settings_for(log)
        prompts, notes = self._prompts(log, source.path, console)
        results = self._replays(log, prompts, settings, console)
        name = USUAL[0] if USUAL[0] in results else next(iter(results))
        summary = summarise(results[name], self.seed)
        conditions = _conditions(source.path, log, settings, (*notes, *budget_notes))
        audited = Audited(str(source.path), name, summary, tuple(conditions["notes"]))
        if self.json:
            shown = {"predictors": _predictor_figures(results), "audit": _summary_figures(name, summary)}
            return audited, shown | conditions
        _print_predictors(results, conditions)
        _print_summary(name, summary)
        return audited, {}

    def _replays(self, log: Log, prompts: Prompts, settings: Settings, console: Console) -> dict[str, Replay]:
        results: dict[str, Replay] = {}
        with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
            for name in chosen(self._named, prompts.embeddings is not None):
                task = progress.add_task(name, total=len(log.batches(settings.batch, settings.seed)))
                results[name] = replay(
                    log,
                    predictor_for(name, prompts),
                    settings,
                    plug_in=PREDICTORS[name].plug_in,
                    on_batch=lambda task=task: progress.advance(task),  # type: ignore[misc]
                )
        return results

    @property
    def _named(self) -> tuple[str, ...]:
        return tuple(chain.from_iterable(self.predictor))

    def _settings(self, budget: int) -> Settings:
        lower, upper = self.bounds or (USUAL_BOUNDS[0], max(USUAL_BOUNDS[1], 2 * budget))
        return Settings(budget, lower, upper, self.estimator, batch=self.batch, seed=self.seed)

    def _settings_for(self, log: Log) -> tuple[Settings, tuple[str, ...]]:
        """The settings with the log's own budget where none is named, and a note if the bounds do not admit that."""
        if self.budget_per_prompt is not None:
            return self._settings(self.budget_per_prompt), ()
        usual = round(float(np.median(log.trials)))
        lower, upper = self.bounds or (USUAL_BOUNDS[0], usual)
        budget = max(lower, min(usual, upper))
        note = f"the log's groups have {usual} rollouts, which the bounds do not admit: compared at {budget}"
        return self._settings(budget), () if budget == usual else (note,)

    def _prompts(self, log: Log, path: Path, console: Console) -> tuple[Prompts, tuple[str, ...]]:
        """The prompts, with embeddings and features if a predictor takes them and they are available, and the notes."""
        bare = Prompts(log.ids)
        wanted = {PREDICTORS[name].embeddings for name in self._named or USUAL}
        if wanted == {"unused"}:
            return bare, log.notes
        asked = self.embeddings is not None or (self._named and "needed" in wanted)
        log = _with_texts_of_the_run(log, path)
        if not asked and sum(min(len(text), 1000) for text in log.texts or ()) > MOST_EMBEDDED:
            note = (
                f"replayed without embeddings: {len(log.ids):,} prompts take a while; --embeddings FILE.npy makes them"
            )
            return bare, (*log.notes, note)
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


def _conditions(path: Path, log: Log, settings: Settings, notes: tuple[str, ...]) -> dict[str, Any]:
    assumed = log.order_is_assumed
    return {
        "log": str(path),
        "prompts": len(log.ids),
        "visits": len(log.visit),
        "batch": settings.batch if assumed else None,
        "assumed_order": assumed,
        "budget_per_prompt": settings.budget_per_prompt,
        "min": settings.lower,
        "max": settings.upper,
        "estimator": settings.estimator,
        "seed": settings.seed,
        "notes": [*notes, *([ASSUMED_ORDER] if assumed else [])],
    }


def _with_texts_of_the_run(log: Log, path: Path) -> Log:
    """The log with its prompts' texts if it lies in a run directory whose data set can be read."""
    if log.texts is not None or not (path.parent / "config.json").exists():
        return log
    try:
        config = saved_config(path.parent)
        questions = TRAINERS[trainer_name(config)].texts(config)
    except (ImportError, AllotmentError, OSError):
        return log
    texts = tuple(questions[prompt] for prompt in map(str, log.ids) if prompt in questions)
    return replace(log, texts=texts) if len(texts) == len(log.ids) else log


def _print_predictors(results: Mapping[str, Replay], conditions: Mapping[str, Any]) -> None:
    """Every predictor's figures by range of epochs, under which conditions, and a line each."""
    columns = ("predictor", "variance ratio", "log loss", "MAE", "calibration", "coverage")
    for span in RANGES:
        rows = {name: figures for name, result in results.items() if (figures := result.by_range().get(span))}
        if not rows:
            continue
        _print_table(
            f"epoch {span}: {next(iter(rows.values())).visits:,} visits",
            columns,
            [(name, *(f"{cell:.3f}" for cell in astuple(figures)[:-1])) for name, figures in rows.items()],
        )
    shown = {key: value for key, value in conditions.items() if key != "notes" and value is not None}
    print(", ".join(f"{key} {value}" for key, value in shown.items()))
    for note in conditions["notes"]:
        print(f"note: {note}")
    for name, result in results.items():
        print(f"{name}: {_change(result)}")


def _print_summary(name: str, summary: Summary) -> None:
    """What the log says of waste, calibration, counts and budgets, and the verdict."""
    waste = summary.waste
    print(
        f"\nrollouts without signal: {100 * waste.without_signal:.1f} % of {waste.rollouts:,}: "
        f"{100 * waste.all_failed / waste.rollouts:.1f} % in groups without a success, "
        f"{100 * waste.all_succeeded / waste.rollouts:.1f} % in groups without a failure\n"
    )
    _print_table(
        f"predicted and observed success ({name})",
        ("predicted in", "predicted", "observed", "rollouts"),
        [
            (f"{b.low:.1f} to {b.high:.1f}", f"{b.predicted:.3f}", f"{b.observed:.3f}", f"{b.rollouts:,}")
            for b in summary.calibration
        ],
    )
    _print_table(
        f"rollouts a visit, with VIP ({name})",
        ("successes", "prompts", "log", "VIP"),
        [(c.name, f"{c.prompts:,}", f"{c.logged:.1f}", f"{c.allotted:.1f}") for c in summary.classes],
    )
    _print_worth(summary)
    print(f"\nverdict: {summary.verdict.text}")
    for doubt in summary.verdict.doubts:
        print(f"but: {doubt}")
    for assumption in summary.verdict.assumptions:
        print(f"assumes: {assumption}")


def _predictor_figures(results: Mapping[str, Replay]) -> dict[str, Any]:
    """The figures of every predictor and range for JSON; a figure that is not available is null."""
    return {
        name: {span: _plain(asdict(figures)) for span, figures in result.by_range().items()}
        for name, result in results.items()
    }


def _summary_figures(name: str, summary: Summary) -> dict[str, Any]:
    """The summary for JSON; a figure that is not available, or is infinite, is null."""
    worth, shares = summary.equivalence, summary.shares
    rates = {name: getattr(shares, name) for name in ("success", "predicted", "logged", "allotted")}
    figures = {
        "predictor": name,
        "rollouts": asdict(summary.waste) | {"without_signal": summary.waste.without_signal},
        "calibration": [asdict(b) for b in summary.calibration],
        "variance_ratio": asdict(worth.variance_ratio),
        "equivalent_rollouts": asdict(worth.rollouts),
        "uniform_equivalent_rollouts": asdict(worth.uniform_rollouts),
        "curve": [
            {"rollouts": b, "worth": w} for b, w in zip(worth.budgets.tolist(), worth.worth.tolist(), strict=True)
        ],
        "lengths": None if summary.lengths is None else asdict(summary.lengths),
        "classes": [asdict(c) for c in summary.classes],
        "prompts": [
            {
                "prompt_id": shares.ids[q],
                "visits": int(shares.visits[q]),
                **{name: float(values_M[q]) for name, values_M in rates.items()},
            }
            for q in np.flatnonzero(shares.visits)
        ],
        "verdict": asdict(summary.verdict),
    }
    return _plain(figures)  # type: ignore[no-any-return]


def _plain(value: Any) -> Any:
    """``value`` with null in place of what JSON has no number for."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _print_table(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", padding=0)
    table.add_column(columns[0], no_wrap=True, min_width=17)
    for column in columns[1:]:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def _print_worth(summary: Summary) -> None:
    worth, budget = summary.equivalence, summary.budget_per_prompt
    print(f"variance ratio: {_interval(worth.variance_ratio, 3)}")
    if math.isnan(worth.rollouts.value):
        return
    print(f"same precision as uniform with {budget} rollouts a prompt: VIP with {_interval(worth.rollouts, 1)}")
    print(f"same precision as VIP with {budget} rollouts a prompt: uniform with {_interval(worth.uniform_rollouts, 1)}")
    if summary.lengths is not None:
        print(_lengths(summary.lengths, budget))


def _lengths(lengths: Lengths, budget: int) -> str:
    if not lengths.uniform:
        return f"{lengths.unit}: all completions are empty"

    def change(part: float) -> str:
        share = 100 * (part / lengths.uniform - 1)
        return f"{abs(share):.1f} % {'more' if share > 0 else 'less'}"

    text = f"{lengths.unit}: uniform with {budget} rollouts a prompt takes {lengths.uniform:,.0f}"
    text += f"; VIP with as many rollouts {change(lengths.allotted)}"
    return text if math.isnan(lengths.equivalent) else f"{text}, VIP at the same precision {change(lengths.equivalent)}"


def _interval(interval: Interval, digits: int) -> str:
    def shown(value: float) -> str:
        return "more than was tried" if math.isinf(value) else f"{value:.{digits}f}"

    return f"{shown(interval.value)} (95 % interval {shown(interval.low)} to {shown(interval.high)})"


def _change(result: Replay) -> str:
    """One line: the variance over all visits."""
    figures = result.figures()
    if figures is None or math.isnan(figures.variance_ratio):
        return "no visit says anything about variance"
    ratio = figures.variance_ratio
    change = f"gradient variance {ratio:.3f} of uniform's over all visits at the same rollouts"
    if abs(ratio - 1) < 0.005:
        return f"{change}: no different from uniform"
    return f"{change}: {100 * abs(1 - ratio):.0f} % {'less' if ratio < 1 else 'more'}"
