"""Logs with a row a rollout: verl's, TRL's and any table, with everything that is wrong with them."""

import csv
import json
import random

import numpy as np
import pytest
from audit_cases import write_lines

from allotment.audit import Columns, find_sources, read_log
from allotment.errors import AllotmentError, InvalidInputError

PROMPTS = ["user\n1 + 1?\nassistant\n", "user\nSpell é.\nassistant\n", "user\n17 * 23?\nassistant\n"]
RUN = {"prompt_id": 0, "step": 1, "n": 8, "successes": 1}


def verl_rows(step, successes, trials=4, high=1.0, low=0.0):
    """As ``RayPPOTrainer._dump_generations`` writes them; the rollouts of a prompt do not lie together."""
    rows = [
        {"input": prompt, "output": "x" * 10, "gts": "7", "score": high if j < k else low, "step": step, "acc": j < k}
        for prompt, k in zip(PROMPTS, successes, strict=False)
        for j in range(trials)
    ]
    random.Random(step).shuffle(rows)
    return rows


def write_verl(folder, steps, **how):
    folder.mkdir(parents=True, exist_ok=True)
    for step, successes in steps.items():
        write_lines(folder / f"{step}.jsonl", verl_rows(step, successes, **how))
    return folder


def by_text(log):
    """(text, visit, step, successes, trials) of every visit."""
    return sorted(
        (log.texts[q], int(v), int(s), int(k), int(n))
        for q, v, s, k, n in zip(log.prompt, log.visit, log.step, log.successes, log.trials, strict=True)
    )


STEPS = {1: [0, 2, 4], 2: [1, 3], 10: [2, 2, 2]}
VISITS = sorted(
    [(PROMPTS[0], i + 1, s, k, 4) for i, (s, k) in enumerate([(1, 0), (2, 1), (10, 2)])]
    + [(PROMPTS[1], i + 1, s, k, 4) for i, (s, k) in enumerate([(1, 2), (2, 3), (10, 2)])]
    + [(PROMPTS[2], i + 1, s, k, 4) for i, (s, k) in enumerate([(1, 4), (10, 2)])]
)


def test_verl_dumps_are_one_run_grouped_by_prompt(tmp_path):
    log = read_log(write_verl(tmp_path / "dump", STEPS))
    assert by_text(log) == VISITS
    assert [len(batch) for batch in log.batches(128, 0)] == [3, 2, 3]
    assert (log.length_unit, set(log.lengths)) == ("characters", {40.0})


@pytest.mark.parametrize("rewards", [(1.0, 0.0), (1.0, -1.0), (1.1, 0.1), (True, False)])
def test_a_success_is_the_larger_of_two_rewards(tmp_path, rewards):
    high, low = rewards
    log = read_log(write_verl(tmp_path, STEPS, high=high, low=low), columns=Columns(reward="score"))
    assert by_text(log) == VISITS
    assert any("counts as a success" in note for note in log.notes) == (rewards not in [(1.0, 0.0), (True, False)])


def test_rewards_of_many_values_are_cut_between_the_two_most_common_or_where_one_says(tmp_path):
    columns = Columns(prompt="q", step="t", reward="r")
    mostly = [0] * 50 + [1] * 46 + [-3, -3, 0.9, 2]
    path = write_lines(tmp_path / "log.jsonl", [{"q": "a", "t": 1, "r": r} for r in mostly])
    log = read_log(path, columns=columns)
    assert log.successes.tolist() == [48]
    assert "a rollout above 0.5 counts as a success" in log.doubts[0]
    assert read_log(path, columns=columns, success_above=1.5).successes.tolist() == [1]
    unclear = write_lines(tmp_path / "u.jsonl", [{"q": "a", "t": 1, "r": r} for r in (0, 0.1, 0.4, 0.9, 1)])
    with pytest.raises(InvalidInputError, match=r"(?s)do not say which.*--success-above 0\.05 or 0\.5 or 0\.95"):
        read_log(unclear, columns=columns)
    assert read_log(unclear, columns=columns, success_above=0.0).successes.tolist() == [4]


def test_verl_lines_without_a_step_take_the_number_of_the_file(tmp_path):
    for step in STEPS:
        rows = [{k: v for k, v in row.items() if k != "step"} for row in verl_rows(step, STEPS[step])]
        write_lines(tmp_path / f"{step}.jsonl", rows)
    assert by_text(read_log(tmp_path)) == VISITS


def table_rows():
    return [
        {"question": row["input"], "iteration": row["step"], "correct": row["score"], "used": 7, "other": None}
        for step in STEPS
        for row in verl_rows(step, STEPS[step])
    ]


def write_table(path, rows):
    if path.suffix == ".csv":
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        return path
    if path.suffix == ".parquet":
        pa = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pa.Table.from_pylist(rows), path)
        return path
    return write_lines(path, rows)


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_any_table_with_named_columns(tmp_path, ending):
    path = write_table(tmp_path / f"log.{ending}", table_rows())
    columns = Columns(prompt="question", step="iteration", reward="correct", tokens="used")
    log = read_log(path, columns=columns)
    assert by_text(log) == VISITS
    assert (log.length_unit, set(log.lengths), log.notes[:-1]) == ("tokens", {28.0}, ())
    assert by_text(read_log(path)) == VISITS


def test_prompts_are_known_by_id_where_there_is_one(tmp_path):
    rows = [{"uid": q % 2, "text": f"attempt {q}", "t": 3, "r": q % 2} for q in range(6)]
    log = read_log(write_lines(tmp_path / "log.jsonl", rows), columns=Columns(id="uid", step="t", reward="r"))
    assert (log.ids, log.successes.tolist(), log.trials.tolist()) == ((0, 1), [0, 3], [3, 3])


def trl_rows(step, successes, messages=False):
    return [
        {
            "step": row["step"],
            "prompt": [{"role": "user", "content": row["input"]}] if messages else row["input"],
            "completion": [{"role": "assistant", "content": row["output"]}] if messages else row["output"],
            "accuracy": row["score"],
            "advantage": row["score"] - 0.5,
        }
        for row in verl_rows(step, successes)
    ]


def write_trl(folder, steps, **how):
    (folder / "completions").mkdir(parents=True)
    for step, successes in steps.items():
        write_table(folder / "completions" / f"completions_{step:05d}.parquet", trl_rows(step, successes, **how))
    return folder


@pytest.mark.parametrize("messages", [False, True])
def test_trl_completions(tmp_path, messages):
    log = read_log(write_trl(tmp_path, STEPS, messages=messages))
    expected = [[v, s, k, n] for _, v, s, k, n in VISITS]
    assert sorted(map(list, zip(log.visit, log.step, log.successes, log.trials, strict=True))) == sorted(expected)
    assert set(log.lengths) == {40.0}


def test_trl_steps_with_the_rollouts_of_the_step_before_count_once(tmp_path):
    folder = write_trl(tmp_path, {1: [0, 2, 4], 3: [1, 1, 1]})
    for step, source in ((2, 1), (4, 3)):
        rows = [row | {"step": step} for row in trl_rows(source, STEPS[1] if source == 1 else [1, 1, 1])]
        write_table(folder / "completions" / f"completions_{step:05d}.parquet", rows)
    log = read_log(folder)
    assert (sorted(set(log.step.tolist())), int(log.trials.sum())) == ([1, 3], 24)
    assert "left out: 2 × file with the rollouts of the one before it" in log.notes[0]


def test_trl_with_several_rewards_wants_one_named(tmp_path):
    rows = [row | {"format": 1.0, "answer": "text"} for row in trl_rows(1, [1, 2, 3])]
    path = write_lines(tmp_path / "t.jsonl", rows)
    with pytest.raises(InvalidInputError, match="accuracy, format"):
        read_log(path)
    assert read_log(path, columns=Columns(reward="accuracy")).successes.sum() == 6


def test_every_defect_is_counted_and_said(tmp_path):
    write_verl(tmp_path, {step: [1, 2, 3] for step in (1, 2, 3, 4, 7, 8)})
    rows = [json.dumps(row) for row in verl_rows(5, [1, 2, 3])]
    good = json.loads(rows[0])
    rows += [json.dumps({**good, "acc": acc}) for acc in (None, float("nan"), "none", {"a": 1, "b": 2})]
    rows += [json.dumps({**good, "step": step}) for step in (None, 2.5)]  # the file's name says 5
    rows += [json.dumps({**good, "input": text}) for text in (None, "")]
    rows += ["[1, 2]", "{nonsense", "", json.dumps({**good, "output": "y" * 99})[:-30]]
    (tmp_path / "5.jsonl").write_text("\n".join(rows))
    (tmp_path / "9.jsonl").write_text("")
    (tmp_path / "notes.json").write_text('{"a": 1}')
    log = read_log(tmp_path)
    assert log.notes == (
        "2 files passed over, of no known format (first: 9.jsonl)",
        "left out: 4 × rollout without a reward (first: 5.jsonl, 13)",
        "left out: 2 × row without a prompt (first: 5.jsonl, 19)",
        "left out: 1 × line that is not a JSON object (first: 5.jsonl, 21)",
        "left out: 1 × line that is not JSON (first: 5.jsonl, 22)",
        "left out: 1 × last line of a file cut short (first: 5.jsonl, 24)",
        "1 steps missing between step 1 and step 8",
        "groups are of 4 to 6 rollouts, median 4",
    )
    assert int(log.trials.sum()) == 7 * 12 + 2


def test_a_damaged_parquet_file_is_left_out_and_said(tmp_path):
    folder = write_trl(tmp_path, STEPS)
    damaged = folder / "completions" / "completions_00002.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-40])
    log = read_log(folder)
    assert sorted(set(log.step.tolist())) == [1, 10]
    assert "1 files passed over" in log.notes[0]
    with pytest.raises(AllotmentError, match="holds no visits"):
        read_log(damaged)


def test_a_parquet_file_damaged_in_the_middle_gives_what_comes_before(tmp_path):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [{"q": q, "t": 1, "r": q % 2} for q in range(4000)]
    path, columns = tmp_path / "log.parquet", Columns(id="q", step="t", reward="r")
    parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=1000)
    start = parquet.ParquetFile(path).metadata.row_group(2).column(0).dictionary_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + 40] = b"\xff" * 40
    path.write_bytes(data)
    log = read_log(path, columns=columns)
    assert 1 < len(log.ids) <= 2000
    assert "damaged one, from this row on" in log.notes[0]


def test_several_runs_in_a_folder_are_told_apart(tmp_path):
    write_verl(tmp_path / "a" / "rollouts", STEPS)
    write_verl(tmp_path / "b", {1: [1]})
    write_lines(tmp_path / "rollouts.jsonl", [RUN])
    write_lines(tmp_path / "other.jsonl", [RUN])
    write_verl(tmp_path / ".hidden", STEPS)
    found = {(str(s.path.relative_to(tmp_path)), s.format, len(s.files)) for s in find_sources(tmp_path)}
    assert found == {
        ("a/rollouts", "verl", 3), ("b", "verl", 1), ("rollouts.jsonl", "run", 1), ("other.jsonl", "run", 1)
    }  # fmt: skip
    with pytest.raises(InvalidInputError, match="several runs"):
        read_log(tmp_path)


def test_a_run_directory_is_its_rollouts(tmp_path):
    write_lines(tmp_path / "rollouts.jsonl", [RUN | {"tokens": 80}])
    write_lines(tmp_path / "metrics.jsonl", [{"step": 1, "loss": 0.5}])
    log = read_log(tmp_path)
    assert (log.lengths.tolist(), log.length_unit) == ([80.0], "tokens")


@pytest.mark.parametrize("columns", [Columns(reward="score"), Columns(prompt="input")])
def test_what_is_not_named_is_asked_for(tmp_path, columns):
    path = write_lines(tmp_path / "log.jsonl", verl_rows(1, [1]))
    with pytest.raises(InvalidInputError, match="not all columns are named"):
        read_log(path, "columns", columns)


def test_many_rollouts_are_added_up_on_the_way(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    rows = [
        {"q": int(q), "t": int(t), "r": float(r), "n": int(n)}
        for q, t, r, n in zip(
            rng.integers(5, size=999), rng.integers(4, size=999), rng.integers(2, size=999), rng.integers(9, size=999),
            strict=True,
        )
    ]  # fmt: skip
    path, columns = write_lines(tmp_path / "l.jsonl", rows), Columns(id="q", step="t", reward="r", tokens="n")
    whole = read_log(path, columns=columns)
    monkeypatch.setattr("allotment.audit.formats.tally.ROOM", 7)
    parts = read_log(path, columns=columns)
    for name in ("prompt", "visit", "step", "successes", "trials", "lengths"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name))
    for q, t, k, n, tokens in zip(whole.prompt, whole.step, whole.successes, whole.trials, whole.lengths, strict=True):
        mine = [row for row in rows if row["q"] == whole.ids[q] and row["t"] == t]
        assert (k, n, tokens) == (sum(r["r"] for r in mine), len(mine), sum(r["n"] for r in mine))
