"""What ``allotment audit`` prints: tables and sentences, or one JSON object."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, astuple
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from allotment.audit.advice import PRECISION
from allotment.audit.counterfactual import ALL
from allotment.audit.equivalence import Interval
from allotment.audit.replaying import RANGES, Replay
from allotment.audit.summary import Audited, Lengths, Summary
from allotment.report.audit_page import next_step, way_name


def print_short(audited: Audited, read_as: str | None) -> None:
    """The first screen: what the log says, what to do, and what else its rollouts could have been spent on."""
    summary = audited.summary
    print(f"audit of {audited.source}")
    if read_as is not None:
        print(f"read as: {read_as}")
    print(f"\nin short: {summary.verdict.headline}")
    for step in summary.advice:
        print(f"what to do: {step}")
    if (settings := next_step(audited)) is not None:
        print("\n".join(f"  {line}" for line in settings.splitlines() if line))
    for doubt in summary.verdict.doubts:
        print(f"but: {doubt}")
    print(f"{PRECISION}\n")
    _print_ways(summary)


def print_predictors(results: Mapping[str, Replay], conditions: Mapping[str, Any]) -> None:
    """Every predictor's figures by range of epochs, under which conditions, and a line each."""
    columns = ("predictor", "variance ratio", "log loss", "MAE", "calibration", "coverage")
    for span in RANGES:
        rows = {name: figures for name, result in results.items() if (figures := result.by_range().get(span))}
        if not rows:
            continue
        first = next(iter(rows.values()))
        print_table(
            f"epoch {span}: {first.visits:,} visits, {100 * first.success:.0f} % of the rollouts succeeded",
            columns,
            [(name, *(f"{cell:.3f}" for cell in astuple(figures)[:-2])) for name, figures in rows.items()],
        )
    shown = {k: value for k, value in conditions.items() if k not in ("notes", "read_as") and value is not None}
    print(", ".join(f"{key} {value}" for key, value in shown.items()))
    for note in conditions["notes"]:
        print(f"note: {note}")
    for name, result in results.items():
        print(f"{name}: {_change(result)}")


def print_summary(name: str, summary: Summary) -> None:
    """What the log says of waste, calibration, counts and budgets, and the verdict."""
    waste = summary.waste
    print(
        f"\nrollouts without signal: {100 * waste.without_signal:.1f} % of {waste.rollouts:,}: "
        f"{100 * waste.all_failed / waste.rollouts:.1f} % in groups without a success, "
        f"{100 * waste.all_succeeded / waste.rollouts:.1f} % in groups without a failure\n"
    )
    print_table(
        f"predicted and observed success ({name})",
        ("predicted in", "predicted", "observed", "rollouts"),
        [
            (f"{b.low:.1f} to {b.high:.1f}", f"{b.predicted:.3f}", f"{b.observed:.3f}", f"{b.rollouts:,}")
            for b in summary.calibration
        ],
    )
    print_table(
        f"rollouts a visit, with VIP ({name})",
        ("successes", "prompts", "log", "VIP"),
        [(c.name, f"{c.prompts:,}", f"{c.logged:.1f}", f"{c.allotted:.1f}") for c in summary.classes],
    )
    _print_worth(summary)
    print(f"\nverdict: {summary.verdict.text}")
    for assumption in summary.verdict.assumptions:
        print(f"assumes: {assumption}")
    print(f"\nin short: {summary.verdict.headline}")


def predictor_figures(results: Mapping[str, Replay]) -> dict[str, Any]:
    """The figures of every predictor and range for JSON; a figure that is not available is null."""
    return {
        name: {span: plain(asdict(figures)) for span, figures in result.by_range().items()}
        for name, result in results.items()
    }


def summary_figures(name: str, summary: Summary) -> dict[str, Any]:
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
        "advice": list(summary.advice),
        "counterfactuals": asdict(summary.counterfactuals),
    }
    return plain(figures)  # type: ignore[no-any-return]


def plain(value: Any) -> Any:
    """``value`` with null in place of what JSON has no number for."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_table(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """A table on standard output; numbers stand on the right."""
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", padding=0)
    table.add_column(columns[0], no_wrap=True, min_width=17)
    for column in columns[1:]:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def _print_ways(summary: Summary) -> None:
    """A line a way of spending: rollouts for the same precision by epoch, of all epochs with their interval, tokens."""
    ways = summary.counterfactuals
    if not ways.found:
        return
    spans = [span for span in ways.found[0].by_range if span != ALL]
    has_tokens = any(way.whole.tokens is not None for way in ways.found)
    print_table(
        "% of the rollouts for the same precision, by epoch",
        ("rollouts a prompt", *spans, "all (95 %)", *([summary.length_unit] if has_tokens else []), "prompts read"),
        [
            (
                f"{way.rollouts_per_prompt} {way_name(way)}",
                *(_percent(way.by_range[span].rollouts.value) for span in spans),
                _percents(way.whole.rollouts),
                *([] if way.whole.tokens is None else [_percents(way.whole.tokens)]),
                f"x{way.prompts_read:.2g}",
            )
            for way in ways.found
        ],
    )
    smaller = [
        w
        for w in ways.found
        if w.believes and w.worth is not None and w.rollouts_per_prompt < summary.budget_per_prompt
    ]
    for way in smaller:
        assert way.worth is not None
        print(f"{way.rollouts_per_prompt} a prompt, {way.what}: as precise as uniform with {_interval(way.worth, 1)}")
    print(f"100: as many rollouts for each prompt, {summary.budget_per_prompt}, or as many as the line says")
    for assumption in ways.assumes:
        print(f"assumes: {assumption}")
    print()


def _percent(value: float) -> str:
    return ">200" if math.isinf(value) else f"{100 * value:.0f}"


def _percents(interval: Interval) -> str:
    return f"{_percent(interval.value)} ({_percent(interval.low)} to {_percent(interval.high)})"


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
