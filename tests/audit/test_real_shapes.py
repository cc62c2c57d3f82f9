"""Logs as people have them: packed, without steps, in lists, filtered, decimated; each with its known truth."""

import gzip
import io
import json
import os
import random
import sys
import threading

import numpy as np
import pytest
from audit_cases import write_lines

from allotment.audit import Columns, Settings, read_log, replay, summarise
from allotment.audit.formats.documents import rows_of
from allotment.audit.formats.opening import ending
from allotment.audit.formats.steps import numbered
from allotment.audit.reading import find_sources
from allotment.cli.main import main
from allotment.errors import InvalidInputError
from allotment.prediction import DiscountedCounts

DRAW = random.Random(0)
CHANCES = [DRAW.betavariate(0.5, 0.5) for _ in range(12)]
ROWS = [
    {"step": 3 * epoch + first // 4 + 1, "prompt": f"question {q}", "completion": "word " * 20, "reward": float(won)}
    for epoch in range(4)
    for first in (0, 4, 8)
    for q in range(first, first + 4)
    for won in [DRAW.random() < CHANCES[q] for _ in range(8)]
]
GROUPS = {}
for _row in ROWS:
    GROUPS.setdefault((_row["step"], _row["prompt"]), []).append(_row)
TRUTH = sorted((step, prompt, sum(r["reward"] for r in rows), len(rows)) for (step, prompt), rows in GROUPS.items())
LISTS = [
    {"step": step, "prompt": prompt, "rewards": [row["reward"] for row in rows]}
    for (step, prompt), rows in GROUPS.items()
]


def truth(log):
    """(step, prompt, successes, rollouts) of every visit."""
    names = log.texts or log.ids
    steps = log.step if log.step is not None else log.visit
    columns = (steps.tolist(), [names[q] for q in log.prompt], log.successes.tolist(), log.trials.tolist())
    return sorted(zip(*columns, strict=True))


def by_visit(log):
    """(visit, prompt, successes, rollouts), where no step is known."""
    assert log.step is None
    return truth(log)


VISITS = sorted(((step - 1) // 3 + 1, prompt, k, n) for step, prompt, k, n in TRUTH)


def as_lines(rows, path):
    return write_lines(path, rows)


def as_array(rows, path):
    path.write_text(json.dumps(rows, indent=1))
    return path


def as_gzip(rows, path):
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    return path


def as_zstandard(rows, path):
    pyarrow = pytest.importorskip("pyarrow")
    buffer = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(buffer, "zstd") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
    path.write_bytes(buffer.getvalue().to_pybytes())
    return path


def as_tsv(rows, path):
    lines = ["\t".join(rows[0]), *("\t".join(map(str, row.values())) for row in rows)]
    path.write_text("\n".join(lines))
    return path


def as_utf_16(rows, path):
    path.write_bytes("".join(json.dumps(row) + "\n" for row in rows).encode("utf-16"))
    return path


def as_tensors(rows, path):
    pytest.importorskip("torch").save({"samples": rows}, path)
    return path


FILES = {
    "a.jsonl": as_lines,
    "a.json": as_array,
    "a.jsonl.gz": as_gzip,
    "a.jsonl.zst": as_zstandard,
    "a.tsv": as_tsv,
    "b.jsonl": as_utf_16,
    "a.pt": as_tensors,
}


@pytest.mark.parametrize("name", FILES)
def test_whatever_a_file_comes_packed_in(name, tmp_path):
    path = FILES[name](ROWS, tmp_path / name)
    log = read_log(path)
    assert truth(log) == TRUTH
    assert f"{len(ROWS)} rollouts, {len(TRUTH)} groups, 12 prompts" in log.read_as
    assert truth(read_log(tmp_path)) == TRUTH


def test_latin_1(tmp_path):
    rows = [dict(row, prompt="é" + row["prompt"]) for row in ROWS]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "l.jsonl").write_bytes(text.encode("latin-1"))
    assert [(s, p[1:], k, n) for s, p, k, n in truth(read_log(tmp_path / "l.jsonl"))] == TRUTH


SHAPES = {
    "lists": LISTS,
    "lists of booleans": [dict(row, score=[bool(r) for r in row["rewards"]], rewards=None) for row in LISTS],
    "counts": [
        {
            "step": row["step"],
            "question": row["prompt"],
            "n": len(row["rewards"]),
            "n_correct": int(sum(row["rewards"])),
        }
        for row in LISTS
    ],
    "rates with n": [
        {"step": row["step"], "problem": row["prompt"], "n": 8, "pass_rate": sum(row["rewards"]) / 8} for row in LISTS
    ],
    "nested rollouts": [
        {
            "step": row["step"],
            "prompt": row["prompt"],
            "rollouts": [{"reward": r, "response": "x"} for r in row["rewards"]],
        }
        for row in LISTS
    ],
    "words": [dict(row, reward="correct" if row["reward"] else "Incorrect") for row in ROWS],
    "tables": [dict(row, reward={"score": row["reward"], "feedback": "..."}) for row in ROWS],
    "a number that is no reward": [
        {**row, "answer": i * 7 % 100, "reward": None, "verdict": "right" if row["reward"] else "wrong"}
        for i, row in enumerate(ROWS)
    ],
    "messages": [dict(row, prompt=[{"role": "user", "content": row["prompt"]}]) for row in ROWS],
    "ids": [dict(row, id=int(row["prompt"].split()[1])) for row in ROWS],
    "an index of rows": [dict(row, idx=i) for i, row in enumerate(ROWS)],
    "a global step": [{("global_step" if k == "step" else k): v for k, v in row.items()} for row in ROWS],
    "numbers of several data sets": [
        {"index": int(row["prompt"].split()[1]) // 3, **{k: row[k] for k in ("step", "prompt", "reward")}}
        for row in ROWS
    ],
    "an id of the rollout, a prompt inside": [
        {"uid": f"{i}", "task": {"question": row["prompt"]}, "is_correct": row["reward"], "step": row["step"]}
        for i, row in enumerate(ROWS)
    ],
    "an epoch": [{("epoch" if k == "step" else k): v for k, v in row.items()} for row in ROWS],
    "rewards by name": [dict(row, reward={"format": 1.0, "accuracy": row["reward"]}) for row in ROWS],
    "conversations": [
        {
            "step": row["step"],
            "reward": row["reward"],
            "messages": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": f"answer {i}"}],
        }
        for i, row in enumerate(ROWS)
    ],
    "penalties": [dict(row, reward=-3.0) if not row["reward"] and i % 31 == 0 else row for i, row in enumerate(ROWS)],
}


@pytest.mark.parametrize("shape", SHAPES)
def test_whatever_shape_rows_have(shape, tmp_path):
    log = read_log(write_lines(tmp_path / "log.jsonl", SHAPES[shape]))
    found = truth(log)
    if shape in ("messages", "conversations"):
        found = sorted((s, json.loads(p)[0]["content"], k, n) for s, p, k, n in found)
    assert found == TRUTH


def test_documents_of_other_shapes(tmp_path):
    """An object by id, columns as lists, a table of wandb."""
    by_id = {row["prompt"]: row["rewards"] for row in LISTS if row["step"] <= 3}
    log = read_log(as_array(by_id, tmp_path / "ids.json"))
    assert by_visit(log) == [(1, p, k, n) for v, p, k, n in VISITS if v == 1]
    rates = {f"question {q}": [k / 8 for _, p, k, _ in VISITS if p == f"question {q}"] for q in range(12)}
    assert by_visit(read_log(as_array(rates, tmp_path / "acc_step_500.json"))) == VISITS
    columns = {name: [row[name] for row in ROWS] for name in ROWS[0]}
    assert truth(read_log(as_array(columns, tmp_path / "columns.json"))) == TRUTH
    wandb = {"columns": list(ROWS[0]), "data": [list(row.values()) for row in ROWS]}
    assert truth(read_log(as_array(wandb, tmp_path / "table.json"))) == TRUTH
    assert rows_of({"a": {"x": 1}, "b": {"x": 2}}) == [{"prompt_id": "a", "x": 1}, {"prompt_id": "b", "x": 2}]
    assert rows_of({"step": 1, "prompt": "p", "rewards": [1, 0]}) == [{"step": 1, "prompt": "p", "rewards": [1, 0]}]


def test_documents_by_step_or_prompt(tmp_path):
    own = {f"step_{step}": [row for row in ROWS if row["step"] == step] for step in range(1, 13)}
    without = {key: [{"prompt": r["prompt"], "reward": r["reward"]} for r in rows] for key, rows in own.items()}
    assert truth(read_log(as_array(without, tmp_path / "steps.json"))) == TRUTH
    prompts = {
        row["prompt"]: [{"reward": r, "response": "x"} for r in row["rewards"]] for row in LISTS if row["step"] < 4
    }
    log = read_log(as_array(prompts, tmp_path / "prompts.json"))
    assert by_visit(log) == [(1, p, k, n) for v, p, k, n in VISITS if v == 1]


def test_ids_that_stand_for_several_prompts_are_a_doubt(tmp_path):
    """Each part of the file has ids of its own, from 0 on; the first rows do not show it."""
    rows = [{"id": int(r["prompt"].split()[1]) % 4, **{k: r[k] for k in ("step", "prompt", "reward")}} for r in ROWS]
    log = read_log(write_lines(tmp_path / "l.jsonl", rows))
    assert any(doubt.startswith("256 rows have an id under which another prompt stood") for doubt in log.doubts)
    columns = Columns(prompt="prompt", step="step", reward="reward")
    assert truth(read_log(tmp_path / "l.jsonl", "columns", columns)) == TRUTH


def test_groups_are_told_apart_where_texts_are_missing(tmp_path):
    rows = [
        {"group": f"{row['step']} {row['prompt']}", "step": row["step"], "reward": row["reward"],
         "text": row["prompt"] if row["step"] % 2 else None}
        for row in ROWS
    ]  # fmt: skip
    log = read_log(
        write_lines(tmp_path / "l.jsonl", rows), columns=Columns(group="group", prompt="text", reward="reward")
    )
    columns = (log.step.tolist(), log.successes.tolist(), log.trials.tolist())
    assert sorted(zip(*columns, strict=True)) == sorted((step, k, n) for step, _, k, n in TRUTH)
    assert len(log.ids) == 12 + 24


def test_without_a_step_visits_follow_the_order_of_rows(tmp_path):
    bare = [{"prompt": row["prompt"], "reward": row["reward"]} for row in ROWS]
    log = read_log(write_lines(tmp_path / "l.jsonl", bare))
    assert by_visit(log) == VISITS
    assert "numbered by the order of rows" in log.notes[0]
    lists = [{"prompt": row["prompt"], "rewards": row["rewards"]} for row in LISTS]
    assert by_visit(read_log(write_lines(tmp_path / "r.jsonl", lists))) == VISITS
    mixed = random.Random(1).sample(bare, len(bare))
    log = read_log(write_lines(tmp_path / "m.jsonl", mixed))
    assert set(log.trials.tolist()) == {32}
    assert "taken for one visit" in log.notes[0]


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("12", 12),
        ("step_12", 12),
        ("checkpoint-12", 12),
        ("global_step_12_evals", 12),
        ("train_data_step12", 12),
        ("version-3", 3),
        ("v7", 7),
        ("run1", None),
        ("seed0", None),
        ("checkpoints", None),
        ("rollouts-1", None),
    ],
)
def test_steps_in_names(name, step):
    assert numbered(name) == step


@pytest.mark.parametrize(
    "place",
    ["{}/data.jsonl", "step_{}/rollouts.jsonl", "train_data_step{}.jsonl", "{}.jsonl", "checkpoint-{}/a/evals.jsonl"],
)
def test_one_run_over_files_and_folders_named_after_steps(place, tmp_path):
    for step in {row["step"] for row in ROWS}:
        path = tmp_path / place.format(step)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_lines(path, [{"prompt": r["prompt"], "reward": r["reward"]} for r in ROWS if r["step"] == step])
    assert len(find_sources(tmp_path)) == 1
    assert truth(read_log(tmp_path)) == TRUTH


def verl_rows(uid):
    known = {"input": "<image>Solve.", "output": "x" * 60}
    return [
        {**known, "score": row["reward"], "step": row["step"], "uid": uid(row["prompt"], i // 8)}
        for i, row in enumerate(ROWS)
    ]


def test_verl_tells_images_of_one_text_apart_by_uid(tmp_path):
    log = read_log(write_lines(tmp_path / "stable.jsonl", verl_rows(lambda prompt, _: prompt)))
    columns = (log.step.tolist(), [log.ids[q] for q in log.prompt], log.successes.tolist(), log.trials.tolist())
    assert sorted(zip(*columns, strict=True)) == TRUTH
    fresh = verl_rows(lambda _, group: f"u{group}")
    rows = [dict(row, input=own["prompt"]) for row, own in zip(fresh, ROWS, strict=True)]
    assert truth(read_log(write_lines(tmp_path / "fresh.jsonl", rows))) == TRUTH  # texts say who comes back


def test_a_pipe_and_standard_input_are_read_once(tmp_path, monkeypatch):
    text = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(text,))
    writer.start()
    assert truth(read_log(tmp_path / "pipe")) == TRUTH
    writer.join()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    assert truth(read_log("-")) == TRUTH


def test_a_pipe_that_nothing_comes_through_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("allotment.audit.formats.opening.PATIENCE", 0.05)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidInputError, match="nothing comes through"):
        read_log(tmp_path / "pipe")


def test_links_that_lead_nowhere_and_pipes_in_a_folder_are_passed_over(tmp_path):
    write_lines(tmp_path / "1.jsonl", ROWS)
    (tmp_path / "2.jsonl").symlink_to("gone")
    os.mkfifo(tmp_path / "3.jsonl")
    log = read_log(tmp_path)
    assert truth(log) == TRUTH
    assert "2 links that lead nowhere, or pipes, passed over (first: 2.jsonl)" in log.notes[0]


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (gzip.compress(b'{"prompt": "a"}\n' * 99, mtime=0)[:12], "damaged"),
        (b"\x1f\x8bnonsense", "damaged"),
        (b'[{"prompt": 1, ', "no JSON"),
        (b"", "an empty file"),
        (b"PAR1 but not", "cut short"),
    ],
)
def test_why_nothing_could_be_read_is_said(data, word, tmp_path):
    (tmp_path / "log.jsonl").write_bytes(data)
    with pytest.raises(InvalidInputError, match=word):
        read_log(tmp_path / "log.jsonl")


def verdict_of(log):
    return summarise(replay(log, DiscountedCounts(), Settings(8, 3, 32)), 0).verdict


def test_a_filtered_log_has_no_verdict(tmp_path):
    rows = [
        dict(row, step=row["step"] + 12 * k) for k in range(3) for rows in GROUPS.values()
        if 0 < sum(r["reward"] for r in rows) < 8 for row in rows
    ]  # fmt: skip
    filtered = verdict_of(read_log(write_lines(tmp_path / "f.jsonl", rows)))
    assert filtered.outcome == "cannot say"
    assert "the log was filtered" in filtered.text
    assert verdict_of(read_log(write_lines(tmp_path / "w.jsonl", ROWS))).outcome != "cannot say"


def test_a_log_of_every_tenth_step_is_said(tmp_path):
    rows = [dict(row, step=10 * row["step"]) for row in ROWS]
    log = read_log(write_lines(tmp_path / "l.jsonl", rows))
    assert any("only every 10th step" in doubt for doubt in verdict_of(log).doubts)
    assert not any("th step" in doubt for doubt in verdict_of(read_log(write_lines(tmp_path / "w.jsonl", ROWS))).doubts)


def test_uneven_counts_are_compared_at_the_mean(tmp_path, capsys):
    rows = [r for rows in GROUPS.values() for r in rows[: 8 if int(rows[0]["prompt"].split()[1]) % 3 else 2]]
    write_lines(tmp_path / "l.jsonl", rows)
    assert main(["audit", str(tmp_path / "l.jsonl"), "--predictor", "discounted-counts", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["budget_per_prompt"] == round(np.mean([8 if q % 3 else 2 for q in range(12)])) == 6
    columns = "prompt = prompt, step = step, reward = reward, completion = completion"
    assert figures["read_as"].startswith(f"format = trl, {columns}")


def test_two_columns_that_may_be_the_reward_and_differ_are_refused(tmp_path):
    rows = [{"prompt": r["prompt"], "correct": r["reward"], "passed": 1 - r["reward"]} for r in ROWS]
    path = write_lines(tmp_path / "l.jsonl", rows)
    with pytest.raises(InvalidInputError, match=r"(?s)which column is the reward.*correct, passed"):
        read_log(path)
    assert read_log(path, columns=Columns(reward="correct")).successes.sum() == sum(r["reward"] for r in ROWS)


PACKED = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def csv_bytes():
    return "\n".join([",".join(ROWS[0]), *(",".join(map(str, row.values())) for row in ROWS)]).encode()


@pytest.mark.parametrize("name", ["a.csv.gz", "a.tsv.gz", "a.jsonl.gz", "a.json.gz"])
@pytest.mark.parametrize("damage", ["checksum", "cut", "middle", "header", "second header"])
def test_packed_files_that_are_damaged(name, damage, tmp_path):
    """What comes before is read, and the rest is counted; nothing else is raised."""
    content = {"csv": csv_bytes(), "tsv": csv_bytes().replace(b",", b"\t"), "jso": PACKED}[name[2:5]]
    content = json.dumps(ROWS).encode() if name == "a.json.gz" else content
    data = bytearray(gzip.compress(content))
    middle = len(data) // 2
    if damage == "checksum":
        data[-8] ^= 0xFF
    elif damage == "cut":
        del data[middle:]
    elif damage == "middle":
        data[middle : middle + 9] = b"\xff" * 9
    elif damage == "header":
        data[:9] = b"\x1f\x8b" + b"\xff" * 7
    else:
        data += b"\x1f\x8b\x08" + b"\x00" * 4
    (tmp_path / name).write_bytes(data)
    if damage == "header" or name == "a.json.gz":
        with pytest.raises(InvalidInputError, match="damaged"):
            read_log(tmp_path / name)
    else:
        assert any("damaged" in note for note in read_log(tmp_path / name).notes)


def test_endings():
    from pathlib import Path

    found = {name: ending(Path(name)) for name in ("a.jsonl", "a.JSONL.gz", "a.b.csv.zst", "a", "a.gz")}
    assert found == {"a.jsonl": ".jsonl", "a.JSONL.gz": ".jsonl", "a.b.csv.zst": ".csv", "a": "", "a.gz": ""}
