"""``allotment shape``: how many prompts, and how many rollouts of each, for a number of rollouts?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from allotment.audit import Columns, Log, Settings, read_log, replay
from allotment.audit.equivalence import Interval
from allotment.audit.shape import Best, Shape, Tokens, best, noise, shapes
from allotment.checks import check_setting, check_whole
from allotment.cli.audit import ASSUMED_ORDER, with_texts_of_the_run
from allotment.cli.audit_output import print_table
from allotment.prediction import default_predictor

CHARACTERS = 4
"""Characters of a token, where the log has texts only."""
ESTIMATORS = ("rloo", "shrinkage")


@dataclass(frozen=True)
class ShapeAdvice:
    """How many prompts for a number of rollouts: the variance of a step's gradient by its shape, from the log of a run.

    Compares steps of equal groups with the other rollouts as baseline (rloo), and with the belief of the default
    predictor in it too (shrinkage). Reads what `allotment audit` reads, one run.
    """

    log: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="LOG")]
    """A file, or the folder of a run."""
    format: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Format of the files, found out by default; see `allotment audit --help`."""
    columns: Columns = field(default_factory=Columns)
    success_above: Annotated[float | None, tyro.conf.arg(metavar="REWARD")] = None
    """A rollout with a larger reward succeeded; by default the middle between the smallest and the largest reward."""
    rollouts: Annotated[int | None, tyro.conf.arg(metavar="C")] = None
    """Rollouts of a step; by default the median of the log's steps."""
    kappa: Annotated[float | None, tyro.conf.arg(metavar="K")] = None
    """Squared gradient of a prompt over (p (1 - p))^2, in units of the size of a score; by default what the planner has
    before it measures."""
    completion_tokens: Annotated[float | None, tyro.conf.arg(metavar="N")] = None
    """Tokens of a completion; by default the mean of the log, if it has lengths."""
    prompt_tokens: Annotated[float | None, tyro.conf.arg(metavar="N")] = None
    """Tokens of a prompt; by default a quarter of its characters in the mean, if the log has texts."""
    batch: int = 128
    """Prompts of a step, where the log does not say which prompts shared a step."""
    seed: int = 0
    """Fixes the assumed order of the prompts, and the draws of the intervals."""
    json: bool = False
    """Print one JSON object instead of a table."""

    def run(self) -> None:
        """Print the table, the best shapes and what they rest on."""
        for name in ("kappa", "completion_tokens", "prompt_tokens"):
            value = getattr(self, name)
            check_setting(name, value, value is None or 0 < value < float("inf"), "a number > 0")
        if self.rollouts is not None:
            check_whole("rollouts", self.rollouts, 1)
        log = with_texts_of_the_run(read_log(self.log, self.format, self.columns, self.success_above), self.log)
        size = max(round(float(np.median(log.trials))), 1)
        budget = max(size, 2)
        settings = Settings(budget, 1, max(32, budget), "shrinkage", self.batch, self.seed)
        step = round(float(np.median([log.trials[rows].sum() for rows in log.batches(self.batch, self.seed)])))
        measured = noise(replay(log, default_predictor(), settings), self._kappa)
        tokens, notes = self._tokens(log)
        seen = len(np.unique(log.prompt))
        own, found = shapes(
            measured,
            (max(round(step / size), 1), size),
            self.rollouts or step,
            available=seen,
            tokens=tokens,
            seed=self.seed,
        )
        notes = (*self._assumptions(measured.from_belief, seen), *notes, *log.notes)
        if log.order_is_assumed:
            notes = (*notes, f"{ASSUMED_ORDER}, {self.batch} prompts a step")
        advice = {
            name: {"rollouts": best(own, found, name, "rollouts"), "with_prefill": best(own, found, name, "tokens")}
            for name in ESTIMATORS
        }
        if self.json:
            print(json.dumps(self._figures(own, found, advice, notes), allow_nan=False))
        else:
            _print(own, found, advice, notes)

    @property
    def _kappa(self) -> float:
        from allotment.planning.gradient_size import USUAL_KAPPA

        return USUAL_KAPPA if self.kappa is None else self.kappa

    def _tokens(self, log: Log) -> tuple[Tokens, tuple[str, ...]]:
        """Tokens of a completion and of a prompt, and where they are from."""
        notes = []
        completion, prompt = self.completion_tokens, self.prompt_tokens
        if completion is None and log.lengths is not None and log.lengths.sum() > 0:
            in_characters = log.length_unit == "characters"
            completion = float(log.lengths.sum() / log.trials.sum()) / (CHARACTERS if in_characters else 1)
            if in_characters:
                notes.append(f"completions: {completion:.0f} tokens, of {CHARACTERS} characters")
        if prompt is None and log.texts is not None and any(log.texts):
            prompt = sum(map(len, log.texts)) / len(log.texts) / CHARACTERS
            notes.append(f"prompts: {prompt:.0f} tokens, of {CHARACTERS} characters, without a template's")
        missing = {"completions (--completion-tokens N)": completion, "prompts (--prompt-tokens N)": prompt}
        if unknown := [name for name, value in missing.items() if value is None]:
            notes.append(f"the log does not say the tokens of {' and '.join(unknown)}: no advice with prefill")
        return Tokens(completion, prompt), tuple(notes)

    def _assumptions(self, from_belief: float, prompts: int) -> tuple[str, ...]:
        found = (
            "a prompt's squared gradient is kappa (p (1 - p))^2 in units of the size of a score, kappa = "
            f"{self._kappa:g}; what prompts differ by is at most its mean, and taken to be that much",
            "the size of a rollout's gradient neither depends on its reward nor differs between prompts",
            "prompts are drawn at random from those that the log visited, and groups are of equal size",
            "shrinkage: the belief of the default predictor without embeddings, with what the log taught it; unbiased "
            "in a loss that sums over tokens or divides by a constant",
            "prefill: a prompt is read once for all its rollouts, and a token read costs as much as one generated, "
            "which is more than it does: the truth lies between both answers",
            f"a shape with more prompts than the log's {prompts:,} is not advised",
        )
        if not from_belief:
            return found
        return (
            *found,
            f"{100 * from_belief:.0f} % of the visits have fewer than four rollouts: what they do not tell of p is as "
            "the predictor believed",
        )

    def _figures(
        self, own: Shape, found: tuple[Shape, ...], advice: Mapping[str, Mapping[str, Best | None]], notes: Any
    ) -> dict[str, Any]:
        return {
            "log": str(self.log),
            "rollouts": self.rollouts or own.rollouts,
            "kappa": self._kappa,
            "own": _plain(own),
            "shapes": [_plain(shape) for shape in found],
            "best": {
                name: {
                    cost: None if b is None else _plain(b.shape) | {"variance_at_equal_cost": b.variance}
                    for cost, b in of.items()
                }
                for name, of in advice.items()
            },
            "notes": list(notes),
        }


def intervals(shape: Shape) -> tuple[Interval | None, Interval | None]:
    """Of the variance with RLOO and with shrinkage."""
    return shape.rloo_interval, shape.shrinkage_interval


def _plain(shape: Shape) -> dict[str, Any]:
    return asdict(shape) | {"rollouts": shape.rollouts}


def _print(
    own: Shape, found: tuple[Shape, ...], advice: Mapping[str, Mapping[str, Best | None]], notes: tuple[str, ...]
) -> None:
    print_table(
        f"variance of a step's gradient, relative to the log's {_name(own)}; ± half of its 95 % interval over prompts",
        ("prompts x rollouts", "between", "rloo", "shrinkage", "completion tokens", "prefill tokens"),
        [
            (
                _name(s),
                f"{s.between:.3f}",
                *("-" if v is None else f"{v.value:.3f} ±{(v.high - v.low) / 2:.3f}" for v in intervals(s)),
                *("-" if v is None else f"{v:,.0f}" for v in (s.completion_tokens, s.prefill_tokens)),
            )
            for s in found
        ],
    )
    for name, of in advice.items():
        for cost, at in (("rollouts", "rollouts"), ("with_prefill", "tokens, prefill among them")):
            if (b := of[cost]) is not None:
                print(f"best with {name} at equal {at}: {_name(b.shape)}, {b.variance:.3f} of the log's variance")
    for note in notes:
        print(f"note: {note}")


def _name(shape: Shape) -> str:
    return f"{shape.prompts:,} x {shape.rollouts_per_prompt}"
