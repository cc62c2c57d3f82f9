"""The figures of ``methods.py``: effective weight over success probability, all in one, and a small one of each."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np

from allotment.report.style import FAINT, GRID, INK, PLANNERS
from method_rows import Method
from theory.toy import MeasuredWeights

Measured = Mapping[str, tuple[Method, MeasuredWeights]]
POINTS, LINE = PLANNERS["vip"][0], PLANNERS["vip-paper"][0]
COLUMNS = 4


def draw_all(measured: Measured, folder: Path) -> None:
    """Write ``methods-weights.svg`` and ``methods/NAME.svg`` for each name."""
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "allotment", "text.color": INK, "font.size": 9}):
        _together(measured, folder / "methods-weights.svg")
        (folder / "methods").mkdir(exist_ok=True)
        for name, (method, weights) in measured.items():
            figure, axes = plt.subplots(figsize=(2.3, 1.5))
            _curve(axes, method, weights, size=2.5)
            axes.tick_params(labelsize=7)
            figure.subplots_adjust(left=0.16, right=0.98, top=0.96, bottom=0.16)
            _save(figure, folder / "methods" / f"{name}.svg")


def _together(measured: Measured, path: Path) -> None:
    rows = -(-len(measured) // COLUMNS)
    height = 2.75 * rows + 0.9
    figure, grid = plt.subplots(rows, COLUMNS, figsize=(3.1 * COLUMNS, height))
    for axes, (name, (method, weights)) in zip(grid.flat, measured.items(), strict=False):
        _curve(axes, method, weights, size=3.5)
        axes.set_title(name, loc="left", fontsize=11, color=INK, pad=24, fontweight="bold")
        formula = textwrap.fill(method.formula, 46) if method.curve else "no formula known"
        axes.text(0, 1.03, formula, transform=axes.transAxes, fontsize=7.5, color=LINE if method.curve else FAINT)
    for axes in grid.flat[len(measured) :]:
        axes.axis("off")
    figure.subplots_adjust(left=0.07, right=0.985, top=1 - 0.7 / height, bottom=1.0 / height, hspace=0.62, wspace=0.2)
    figure.text(0.5, 0.6 / height, "success probability p", ha="center")
    figure.supylabel("weight relative to the gradient of p; uniform RLOO = 1", color=INK, fontsize=9)
    figure.legend(handles=_keys(), loc="lower center", ncols=3, frameon=False, bbox_to_anchor=(0.5, 0.05 / height))
    _save(figure, path)


def _curve(axes: Any, method: Method, measured: MeasuredWeights, size: float) -> None:
    p_P, n_P = measured.probabilities_P, measured.generated_P
    axes.axhline(1, color=GRID, linewidth=1)
    axes.axhline(0, color=FAINT, linewidth=0.6)
    axes.plot(p_P, n_P / n_P.mean(), color=FAINT, linewidth=1, linestyle="--")
    if method.curve is not None:
        axes.plot(p_P, method.curve(measured), color=LINE, linewidth=1.6)
    bars = {"yerr": 2 * measured.errors_P, "fmt": "o", "markersize": size, "elinewidth": 1}
    axes.errorbar(p_P, measured.weights_P, color=POINTS, **bars)
    low = min(0.0, float(measured.weights_P.min()) * 1.15)
    high = max(2.0, float(np.max([measured.weights_P, n_P / n_P.mean()])) * 1.1)
    axes.set(xlim=(0, 1), ylim=(low, high), xticks=[0, 0.5, 1], xticklabels=["0", "0.5", "1"])
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK)


def _keys() -> list[Any]:
    entries = [
        {"color": POINTS, "marker": "o", "linestyle": "none", "label": "measured, bars of 2 standard errors"},
        {"color": LINE, "linewidth": 1.6, "label": "formula"},
        {"color": FAINT, "linewidth": 1, "linestyle": "--", "label": "share of the rollouts, n / mean n"},
    ]
    return [plt.Line2D([], [], **entry) for entry in entries]


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
