"""The README's picture, docs/images/learning.svg: gain over rollouts generated.

``python benchmarks/learning_plot.py runs/curves.jsonl docs/images/learning.svg``, after ``joint_learning.py --case
one-pass --out runs/curves.jsonl --arms --at uniform@1e-4 uniform-32x8@1e-4 joint@1e-4 joint-scores@2e-4``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np

from allotment.report.style import GRID, INK

WORDS = {
    "joint-scores": ("joint, baseline weighted by scores", "#1b7f5c"),
    "joint": ("joint: which prompts, how many, which baseline", "#2f6fb0"),
    "uniform-32x8": ("uniform, twice the rollouts", "#b06f2f"),
    "uniform": ("uniform, 16 prompts x 8", "#6b6b6b"),
}
Rows = list[dict[str, Any]]


def main() -> None:
    """Read, draw, write."""
    source, target = map(Path, sys.argv[1:])
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "allotment", "text.color": INK, "font.size": 10}):
        figure, axes = plt.subplots(figsize=(7.2, 3.6))
        for arm, (words, colour) in WORDS.items():
            draw(axes, [row for row in rows if row["arm"] == arm], words, colour)
        axes.set_xlabel("rollouts generated")
        axes.set_ylabel("gain in success, new prompts")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.grid(color=GRID)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlim(0, 40_000)
        axes.set_xticks(range(0, 25_001, 5_000))
        figure.tight_layout()
        figure.savefig(target, metadata={"Date": None}, transparent=False)


def draw(axes: Any, rows: Rows, words: str, colour: str) -> None:
    """The mean of an arm's runs and its standard error, and its name at the end."""
    rollouts = np.mean([[point["rollouts"] for point in row["curve"]] for row in rows], axis=0)
    gains = np.array([[point["held_out"] - row["curve"][0]["held_out"] for point in row["curve"]] for row in rows])
    mean, error = gains.mean(0), gains.std(0, ddof=1) / np.sqrt(len(rows))
    axes.plot(rollouts, mean, color=colour, marker="o", markersize=3)
    axes.fill_between(rollouts, mean - error, mean + error, color=colour, alpha=0.15, linewidth=0)
    axes.annotate(words, (rollouts[-1], mean[-1]), (6, -2), textcoords="offset points", va="top", color=colour)


if __name__ == "__main__":
    main()
