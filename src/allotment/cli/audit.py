"""``allotment audit``: what would VIP have saved on a run that happened, and how good is each predictor?"""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass, field, replace
from datetime import datetime
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.progress import Progress

from allotment.audit.embeddings import characters, kept_embeddings, prompt_embeddings
from allotment.audit.formats.base import Columns, Source
from allotment.audit.log import Log
from allotment.audit.predictors import USUAL, Prompts, chosen, predictor_for
from allotment.audit.reading import find_sources, read_source
from allotment.audit.replaying import Replay, replay
from allotment.audit.settings import Observe, Settings
from allotment.audit.sizes import usual_groups
from allotment.audit.summary import Audited, summarise, wasted_prompts
from allotment.cli.audit_output import predictor_figures, print_predictors, print_short, print_summary, summary_figures
from allotment.config import EstimatorName, by_name
from allotment.errors import AllotmentError, InvalidInputError, MissingExtraError
from allotment.prediction import distinct_parts, text_features
from allotment.pricing import get_estimator
from allotment.registry import LOG_FORMATS, PREDICTORS, TRAINERS
from allotment.report.audit_page import write_audit
from allotment.run_logs.directory import saved_config
from allotment.trainers import trainer_name

ASSUMED_ORDER = "order assumed: the log does not say which prompts shared a step; one random order for every epoch"
MOST_EMBEDDED = 100_000
"""Characters of prompts, 1,000 of each at most, that are embedded without being asked for: about 12 s on one core."""
LOST = (
    "Without them a prompt's first visit counts as if nothing were known of it. Where a text names its task, the "
    "variance there was .84 of uniform's instead of 1, and .77 instead of .84 at the second visit; of mathematics of "
    "one kind no different (docs/experiments)"
)
"""What is lost without embeddings, as measured."""
USUAL_BOUNDS = (3, 32)
"""Least and most rollouts of a prompt where none are given, as in the paper; twice the budget where that is more. With
an estimator that allows groups of one the least is 1."""
RICHER = (
    "the predictors learn from the log's {usual} rollouts a visit, where a run with {named} would have taught them "
    "less; --observe allotted shows them as many as were allotted"
)
FULL_BELIEF = (
    "{names}: priced by E[p (1 - p)] and Var p of its belief: the paper's price, at the mean, does not say how "
    "uncertain a belief is, which shrinkage needs"
)

PredictorName = Annotated[str, by_name(PREDICTORS)]


def _formats(default: str) -> str:
    """For --help: the formats' names, those of other packages too."""
    return f"(default: {default}; or {', '.join(LOG_FORMATS.names)})"


@dataclass(frozen=True)
class Audit:
    """Replay the logs of runs: what would VIP have saved, what would each predictor have predicted, and how well?

    Reads the rollouts.jsonl of a run, success counts a prompt, verl's dumped rollouts, TRL's completions, and any table
    of prompts and rewards: JSONL, JSON, CSV, TSV or parquet, also packed. Several runs, also in one folder, are audited
    one by one.
    """

    logs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="LOG...")]
    """Files, or folders with the files of a run or of several; - for standard input."""
    format: Annotated[str, tyro.conf.arg(metavar="NAME", help_behavior_hint=_formats)] = "auto"
    """Format of the files; columns: what --prompt, --step, --reward and so on name."""
    columns: Columns = field(default_factory=Columns)
    success_above: Annotated[float | None, tyro.conf.arg(metavar="REWARD")] = None
    """A rollout with a larger reward succeeded; by default the middle between the smallest and the largest reward."""
    predictor: Annotated[tuple[tuple[PredictorName, ...], ...], tyro.conf.UseAppendAction] = ()
    """Predictors to replay; by default all but k-nearest that can do with what the log holds."""
    budget_per_prompt: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Rollouts of a step, divided by its prompts; by default the mean of the log's groups, but for far too
    large ones."""
    bounds: Annotated[tuple[int, int] | None, tyro.conf.arg(metavar="L U")] = None
    """Least and most rollouts of a prompt; by default 3 (shrinkage: 1) and 32, or twice the budget if that is more."""
    estimator: EstimatorName = "rloo"
    """Gradient estimator whose variance is priced and scored; shrinkage, with the belief as baseline, is compared with
    uniform under rloo."""
    observe: Observe = "logged"
    """What a predictor learns from a visit: all its rollouts, or as many of them as it was allotted."""
    batch: int = 128
    """Prompts of a step, where the log does not say which prompts shared a step."""
    seed: int = 0
    """Fixes the assumed order of the prompts, the order among prompts of equal price, draws, and the bootstrap."""
    embeddings: Annotated[Path | None, tyro.conf.arg(metavar="FILE.npy")] = None
    """Embeddings of the prompts, a row a prompt in the order of the log; read if it is there, else written."""
    json: bool = False
    """Print one JSON object instead of tables."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE.html")] = None
    """Write a page too: one HTML file that opens from disk."""

    def run(self) -> None:
        """Print what each log says, under which conditions, and every predictor's figures by range of epochs."""
        least, _ = self.bounds or (self._usual_least, 0)
        self._settings(self.budget_per_prompt or max(least, 2))  # unusable settings before any file is read
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
        if settings.believes and (full := [name for name in results if PREDICTORS[name].plug_in]):
            notes = (*notes, FULL_BELIEF.format(names=", ".join(full)))
        name = USUAL[0] if USUAL[0] in results else next(iter(results))
        summary = summarise(results[name], self.seed)
        conditions = _conditions(source.path, log, settings, (*notes, *budget_notes))
        read_as = () if log.read_as is None else (f"read as: {log.read_as}",)
        audited = Audited(
            str(source.path),
            name,
            summary,
            (*read_as, *conditions["notes"]),
            results[name].by_range(),
            {
                **{k: v for k, v in conditions.items() if k not in ("log", "read_as", "notes") and v is not None},
                "command": shlex.join(["allotment", *sys.argv[1:]]),
                "version": version("allotment"),
                "date": f"{datetime.now():%Y-%m-%d %H:%M}",
            },
            wasted_prompts(log),
        )
        if self.json:
            shown = {"predictors": predictor_figures(results), "audit": summary_figures(name, summary)}
            return audited, shown | conditions
        print_short(audited, log.read_as)
        print_predictors(results, conditions)
        print_summary(name, summary)
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
                    plug_in=PREDICTORS[name].plug_in and not settings.believes,
                    on_batch=lambda task=task: progress.advance(task),  # type: ignore[misc]
                )
        return results

    @property
    def _named(self) -> tuple[str, ...]:
        return tuple(chain.from_iterable(self.predictor))

    @property
    def _usual_least(self) -> int:
        return 1 if get_estimator(self.estimator).minimum_count == 1 else USUAL_BOUNDS[0]

    def _settings(self, budget: int) -> Settings:
        lower, upper = self.bounds or (self._usual_least, max(USUAL_BOUNDS[1], 2 * budget))
        return Settings(budget, lower, upper, self.estimator, self.batch, self.seed, self.observe)

    def _settings_for(self, log: Log) -> tuple[Settings, tuple[str, ...]]:
        """The settings with the log's own budget where none is named, and a note if the bounds do not admit that."""
        usual_V, _ = usual_groups(log)
        usual = round(float(log.trials[usual_V].mean()))
        if (named := self.budget_per_prompt) is not None:
            richer = named < usual and self.observe == "logged"
            return self._settings(named), (RICHER.format(usual=usual, named=named),) if richer else ()
        lower, upper = self.bounds or (self._usual_least, usual)
        budget = max(lower, min(usual, upper), 2)  # uniform has no leave-one-out baseline at 1
        why = "the bounds do" if usual > 1 else "the bounds, or uniform's leave-one-out baseline, do"
        note = f"the log's groups have {usual} rollouts, which {why} not admit: compared at {budget}"
        return self._settings(budget), () if budget == usual else (note,)

    def _prompts(self, log: Log, path: Path, console: Console) -> tuple[Prompts, tuple[str, ...]]:
        """The prompts, with embeddings and features if a predictor takes them and they are available, and the notes."""
        bare = Prompts(log.ids)
        wanted = {PREDICTORS[name].embeddings for name in self._named or USUAL}
        if wanted == {"unused"}:
            return bare, log.notes
        asked = self.embeddings is not None or (self._named and "needed" in wanted)
        log = with_texts_of_the_run(log, path)
        if not asked and characters(log) > MOST_EMBEDDED and kept_embeddings(log, path) is None:
            note = (
                f"replayed without embeddings: {len(log.ids):,} prompts take a while; --embeddings FILE.npy makes them"
            )
            return bare, (*log.notes, f"{note}. {LOST}")
        try:
            embeddings = prompt_embeddings(log, self.embeddings, beside=path, progress=console.is_terminal)
        except MissingExtraError:
            if self._named and "needed" in wanted:
                raise
            note = "embedding model not installed (allotment[train]): replayed without embeddings"
            return bare, (*log.notes, f"{note}. {LOST}")
        if embeddings is None:
            return bare, (*log.notes, f"the log has no prompt texts: replayed without embeddings. {LOST}")
        return Prompts(log.ids, embeddings, text_features(distinct_parts(log.texts)) if log.texts else None), log.notes


def _conditions(path: Path, log: Log, settings: Settings, notes: tuple[str, ...]) -> dict[str, Any]:
    assumed = log.order_is_assumed
    return {
        "log": str(path),
        **({} if log.read_as is None else {"read_as": log.read_as}),
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


def with_texts_of_the_run(log: Log, path: Path) -> Log:
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
