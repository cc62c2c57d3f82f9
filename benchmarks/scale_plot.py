"""The figure of ``predictor_scale.py``: seconds per step and peak memory over the number of prompts, as an SVG.

Seconds are processor time: on one thread the time that a step takes on an idle machine, whoever else is at work.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np

from allotment.report.style import FAINT, GRID, INK, PLANNERS

COLOURS = {
    "default": PLANNERS["vip"][0],
    "paper": PLANNERS["vip-paper"][0],
    "pairwise": PLANNERS["inverse-variance"][0],
    "sklearn": PLANNERS["inverse-accuracy"][0],
    "gpytorch": PLANNERS["oracle"][0],
}
"""Methods that are drawn, colour-blind safe."""
EMBEDDING_BYTES = 4 * 384
LABEL_GAP = 0.055
"""Least distance of two labels, as a share of the height."""


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write the figure of measured ``rows`` to ``path``."""
    text = {"svg.fonttype": "none", "svg.hashsalt": "allotment", "font.family": "sans-serif", "text.color": INK}
    with mpl.rc_context(text):
        figure, (above, below) = plt.subplots(2, 1, figsize=(7.6, 7.6), sharex=True)
        _panel(above, rows, "cpu_seconds_per_step", ("target 0.25 s", 0.25))
        above.set_title("Seconds per step, one thread: predict 512 prompts, learn 512 counts", loc="left", fontsize=11)
        above.yaxis.set_major_formatter(lambda value, _: f"{value:g} s" if value >= 1 else f"{1e3 * value:g} ms")
        sizes = np.array(sorted({row["n"] for row in rows}))
        below.plot(sizes, sizes * EMBEDDING_BYTES, color=FAINT, linewidth=1, linestyle=":")
        embeddings = ("embeddings alone", sizes[-1] * EMBEDDING_BYTES)
        _panel(below, rows, "peak_bytes", ("target 2.5 GB", 2.5e9), embeddings, bottom=0.08e9, inner=(-52, 8))
        below.set_title("Peak memory of the process, embeddings included", loc="left", fontsize=11)
        below.yaxis.set_major_formatter(lambda value, _: f"{value / 1e9:g} GB")
        below.set_xlabel("prompts N", color=INK)
        below.xaxis.set_major_formatter(lambda n, _: f"{n:,.0f}")
        figure.subplots_adjust(left=0.09, right=0.68, top=0.95, bottom=0.07, hspace=0.16)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def _panel(
    axes: Any,
    rows: Sequence[dict[str, Any]],
    key: str,
    target: tuple[str, float],
    *others: tuple[str, float],
    bottom: float | None = None,
    inner: tuple[float, float] = (8, -13),
) -> None:
    """A line per method with its name at its end: at the right, or where it stops, moved by ``inner`` points."""
    last = max(row["n"] for row in rows)
    outer = [(value, text, FAINT) for text, value in (target, *others)]
    style: dict[str, Any] = {"fontsize": 9.5}
    for method, colour in COLOURS.items():
        points = [(row["n"], row[key]) for row in rows if row["method"] == method and key in row]
        if not points:
            continue
        label = next(row["label"] for row in rows if row["method"] == method)
        axes.plot(*zip(*points, strict=True), color=colour, linewidth=2, marker="o", markersize=4.5)
        if points[-1][0] == last:
            outer.append((points[-1][1], label, colour))
        else:
            axes.annotate(label, points[-1], inner, textcoords="offset points", color=colour, **style)
    axes.axhline(target[1], color=FAINT, linewidth=1, linestyle="--")
    axes.set(xscale="log", yscale="log")
    axes.set_ylim(bottom=bottom)
    axes.grid(color=GRID)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK)
    axes.tick_params(which="minor", left=False, bottom=False)
    outer.sort()
    low, high = np.log10(axes.get_ylim())
    heights = _apart([(np.log10(value) - low) / (high - low) for value, _, _ in outer])
    for height, (_, text, colour) in zip(heights, outer, strict=True):
        axes.text(1.02, height, text, transform=axes.transAxes, color=colour, va="center", **style)


def _apart(heights: Sequence[float]) -> list[float]:
    """Rising ``heights`` with at least a gap between each two: the mean of pushing all up and pushing all down."""
    up, down = list(heights), list(heights)
    for i in range(1, len(heights)):
        up[i] = max(up[i], up[i - 1] + LABEL_GAP)
        down[-1 - i] = min(down[-1 - i], down[-i] - LABEL_GAP)
    return [(a + b) / 2 for a, b in zip(up, down, strict=True)]
