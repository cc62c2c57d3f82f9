"""benchmarks/predictor_scale.py: what it compares with is what it says, and it runs from measuring to the figure."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from allotment.prediction import GaussianProcess

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_all_pairwise_distances_give_the_paper_s_recursion(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from scale_methods import PairwiseProcess

    rng = np.random.default_rng(0)
    x_ND = rng.standard_normal((40, 6)).astype(np.float32)
    x_ND /= np.linalg.norm(x_ND, axis=1, keepdims=True)
    theirs = PairwiseProcess(x_ND)
    ours = GaussianProcess(x_ND, bandwidth=0.4, jitter=1e-4, prior_mean=-1.0)
    for _ in range(4):
        ids = rng.permutation(40)[:10].tolist()
        successes = rng.integers(0, 9, 10)
        for predictor in (theirs, ours):
            predictor.observe(ids, successes, np.full(10, 8))
    np.testing.assert_allclose(theirs.mean_N, ours.predict(range(40)).mean, atol=1e-3)


def test_measures_skips_with_a_reason_and_draws(tmp_path):
    sizes = ["--n", "40000", "1000", "--method", "default", "pairwise"]
    command = [sys.executable, str(BENCHMARKS / "predictor_scale.py"), *sizes, "--json"]
    done = subprocess.run([*command, "--plot", str(tmp_path / "f.svg")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    few, many, pairwise, skipped = result["rows"]
    assert [(row["method"], row["n"]) for row in (few, many)] == [("default", 1000), ("default", 40_000)]
    assert few["seconds_per_step"] > 0
    assert many["peak_bytes"] - few["peak_bytes"] > 39_000 * 384 * 4
    assert skipped["skipped"] == "needs 19.2 GB"
    assert json.loads((tmp_path / "f.json").read_text()) == result
    for row in (few, pairwise):
        assert row["label"] in (tmp_path / "f.svg").read_text()


@pytest.mark.parametrize("arguments", [["--n", "511"], ["--method", "nothing"]])
def test_refuses_what_it_cannot_measure(arguments):
    command = [sys.executable, str(BENCHMARKS / "predictor_scale.py"), *arguments]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 2
