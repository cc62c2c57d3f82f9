"""What each combination of advantage and aggregation optimises: the tables of docs/weights.md, computed exactly.

    python benchmarks/effective_weights.py                          # print
    python benchmarks/effective_weights.py --write docs/weights.md  # put between the markers of that file

No sampling and no seed; about a second on one core. ``tests/learning/test_weights_doc.py`` compares the document.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from allotment.allocation import allocate_exact
from allotment.learning import AdvantageName, Aggregation, Length, effective_weights
from allotment.types import FloatArray, IntArray

BEGIN, END = "<!-- effective-weights:begin -->", "<!-- effective-weights:end -->"
P = np.array([0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98])
MEAN_COUNT, LOWER, UPPER = 8, 3, 32
RIGHT_LENGTH, WRONG_LENGTH = 4, 10
ADVANTAGES: tuple[AdvantageName, ...] = ("rloo", "dr_grpo", "grpo")
AGGREGATIONS: tuple[Aggregation, ...] = ("prompt_mean", "sequence_mean", "token_mean")
Row = tuple[str, str, FloatArray]


def counts_of(allocation: str) -> IntArray:
    """[Q] rollouts of each prompt: all ``MEAN_COUNT``, or the exact RLOO split of the same budget for known p."""
    if allocation == "uniform":
        return np.full(len(P), MEAN_COUNT)
    return allocate_exact(P * (1 - P), MEAN_COUNT * len(P), lower=LOWER, upper=UPPER, estimator="rloo").counts


def equal_length_rows(counts_Q: IntArray) -> list[Row]:
    """Every combination, all answers of one length."""
    return [(a, g, effective_weights(P, counts_Q, a, g)) for a in ADVANTAGES for g in AGGREGATIONS]


def unequal_length_rows(counts_Q: IntArray) -> list[Row]:
    """RLOO where wrong answers are longer than right ones, with each treatment of length; token_mean with all three."""

    def weights(advantage: AdvantageName, aggregation: Aggregation, length: Length = "mean") -> FloatArray:
        lengths = {"right_length": RIGHT_LENGTH, "wrong_length": WRONG_LENGTH}
        return effective_weights(P, counts_Q, advantage, aggregation, length=length, **lengths)

    rows: list[Row] = []
    for aggregation in AGGREGATIONS[:2]:
        rows.append(("rloo", f'{aggregation}, length="sum"', weights("rloo", aggregation, "sum")))
        rows.append(("rloo", f'{aggregation}, length="mean"', weights("rloo", aggregation)))
    return rows + [(advantage, "token_mean", weights(advantage, "token_mean")) for advantage in ADVANTAGES]


def markdown(rows: list[Row], counts_Q: IntArray) -> str:
    """A table of relative weights: divided by their mean over prompts; the last column is largest over smallest."""
    head = " | ".join(f"p={p:g}, n={n}" for p, n in zip(P, counts_Q, strict=True))
    lines = [f"| advantage | aggregation | {head} | max/min |", "|---|---|" + "---:|" * (len(P) + 1)]
    for advantage, aggregation, weights_Q in rows:
        cells = " | ".join(f"{w:.2f}" for w in weights_Q / weights_Q.mean())
        lines.append(f"| {advantage} | {aggregation} | {cells} | {weights_Q.max() / weights_Q.min():.2f} |")
    return "\n".join(lines)


def report() -> str:
    """All four tables with their captions."""
    parts = []
    for allocation, caption in (("adaptive", f"exact RLOO split, L={LOWER}, U={UPPER}, C=8Q"), ("uniform", "8 each")):
        counts_Q = counts_of(allocation)
        parts.append(f"**Answers of equal length; {allocation} rollouts ({caption}).**")
        parts.append(markdown(equal_length_rows(counts_Q), counts_Q))
        parts.append(
            f"**Right answers of {RIGHT_LENGTH} tokens, wrong ones of {WRONG_LENGTH}; {allocation} rollouts.**"
        )
        parts.append(markdown(unequal_length_rows(counts_Q), counts_Q))
    return "\n\n".join(parts)


def main() -> None:
    """Print the tables, or write them between the markers of a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="file with the two markers")
    path = parser.parse_args().write
    if path is None:
        print(report())
        return
    before, rest = path.read_text().split(BEGIN)
    path.write_text(f"{before}{BEGIN}\n{report()}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
