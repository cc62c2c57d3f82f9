"""docs/weights.md says what the code computes."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from allotment.learning import effective_weights

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def benchmark():
    return runpy.run_path(str(ROOT / "benchmarks" / "effective_weights.py"))


def test_tables_in_the_document_are_current(benchmark):
    text = (ROOT / "docs" / "weights.md").read_text()
    written = text.split(benchmark["BEGIN"])[1].split(benchmark["END"])[0].strip()
    assert written == benchmark["report"](), "run: python benchmarks/effective_weights.py --write docs/weights.md"


@pytest.mark.parametrize("allocation", ["adaptive", "uniform"])
def test_claims_of_the_summary(benchmark, allocation):
    """Which rows are flat: the statement 'objective kept', for the very allocations of the tables."""
    counts_Q = benchmark["counts_of"](allocation)
    assert counts_Q.sum() == 56
    for advantage, aggregation, weights_Q in benchmark["equal_length_rows"](counts_Q):
        kept = advantage != "grpo" if allocation == "uniform" else (advantage, aggregation) == ("rloo", "prompt_mean")
        assert (np.ptp(weights_Q) < 1e-9) == kept
    for _, label, weights_Q in benchmark["unequal_length_rows"](counts_Q):
        kept = label == 'prompt_mean, length="sum"' or (
            allocation == "uniform" and label == 'sequence_mean, length="sum"'
        )
        assert (np.ptp(weights_Q) < 1e-9) == kept


def test_figures_quoted_in_the_text(benchmark):
    p_Q, counts_Q = benchmark["P"], benchmark["counts_of"]("adaptive")
    rare, even = 0, 3  # p = 0.02 and p = 0.5
    by_sequence_Q = effective_weights(p_Q, counts_Q, "rloo", "sequence_mean")
    assert by_sequence_Q[even] / by_sequence_Q[rare] == pytest.approx(3)
    grpo_Q = effective_weights(p_Q, np.full(7, 8), "grpo")
    assert grpo_Q[rare] / grpo_Q[even] == pytest.approx(1.4, abs=0.05)
    assert np.sqrt(0.25 / (0.02 * 0.98)) == pytest.approx(3.6, abs=0.05)
    grpo_Q = effective_weights(p_Q, counts_Q, "grpo")
    assert grpo_Q[rare] < grpo_Q[even]
