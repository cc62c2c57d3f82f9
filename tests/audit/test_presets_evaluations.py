"""What evaluations and loggers leave on disk, with every field that their code writes; each with its known truth."""

import json
import struct
import zipfile
import zlib

import pytest
from audit_cases import write_lines
from preset_cases import EVALUATION, ROLLOUTS, counted, history, history_of, of_step, shuffled, steps_of, truth

from allotment.audit import Columns, find_sources, read_log
from allotment.errors import InvalidInputError


def check(path, name, rollouts=EVALUATION, columns=None):
    (source,) = find_sources(path, columns=columns)
    assert source.format == name
    log = read_log(path, columns=columns)
    assert log.read_as.startswith(f"format = {name}, ")
    assert counted(log) == truth(rollouts)
    found = [tuple((1, k, n) for _, k, n in visits) for visits in history_of(log)]
    assert sorted(found) == sorted(tuple((1, k, n) for _, k, n in visits) for visits in history(rollouts))
    return log


def verified(r, **more):
    """``state_to_output``; metrics stand beside the reward too."""
    metrics = {"correct_answer": r.reward, "num_turns": 1.0}
    return {
        "example_id": r.prompt, "prompt": r.messages, "completion": [{"role": "assistant", "content": r.answer}],
        "answer": "7", "info": {"level": 3}, "reward": r.reward, "error": None,
        "timing": {"generation_ms": 12.0, "scoring_ms": 1.0, "total_ms": 13.0}, "is_completed": True,
        "is_truncated": False, "stop_condition": "max_turns_reached", "metrics": metrics, "tool_defs": None,
        "token_usage": {"input_tokens": 6.0, "output_tokens": float(r.tokens)}, **metrics, **more,
    }  # fmt: skip


FAILED = {"error": "InfraError", "error_chain_repr": "InfraError()", "error_chain_str": "gone"}


@pytest.mark.parametrize("order", [0, 1, None])
def test_verifiers(order, tmp_path):
    """In the order in which rollouts end, some of them failed; a line is cut short."""
    rows = [verified(r) for r in EVALUATION] + [verified(r, error=FAILED, reward=0.0) for r in EVALUATION[::8]]
    folder = tmp_path / "outputs" / "evals" / "gsm8k--m" / "1a2b3c4d"
    folder.mkdir(parents=True)
    path = write_lines(folder / "results.jsonl", rows if order is None else shuffled(rows, order))
    with open(path, "a") as file:
        file.write(json.dumps(rows[0])[:70])
    (folder / "metadata.json").write_text(
        json.dumps({"env_id": "gsm8k", "model": "m", "num_examples": 12, "avg_reward": 0.5})
    )
    log = check(tmp_path, "verifiers")
    assert {"left out: 12 × rollout that failed", "left out: 1 × last line of a file cut short"} == {
        note.partition(" (")[0] for note in log.notes if note.startswith("left out")
    }
    assert log.lengths.sum() == sum(r.tokens for r in EVALUATION)


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_verifiers_as_a_data_set(ending, tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [{k: v for k, v in verified(r).items() if v is not None} for r in shuffled(EVALUATION)]
    made = datasets.Dataset.from_list(rows)
    if ending == "parquet":
        made.to_parquet(tmp_path / "train-00000-of-00001.parquet")
    else:
        made.save_to_disk(tmp_path)
    check(tmp_path, "verifiers")


def test_prime_rl_as_it_was_before_traces(tmp_path):
    for step in steps_of():
        folder = tmp_path / "rollouts" / f"step_{step}"
        folder.mkdir(parents=True)
        write_lines(
            folder / "train_rollouts.jsonl", [verified(r, env_name="math", trajectory=[]) for r in of_step(step)]
        )
        write_lines(folder / "eval_rollouts_aime.jsonl", [verified(r, env_name="aime") for r in of_step(step)])
        (folder / "train_rollouts.bin").write_bytes(b"\x93\x01")
    log = read_log(tmp_path)
    assert (counted(log), history_of(log)) == (truth(ROLLOUTS), history(ROLLOUTS))


def sample(r, filter="strict-match", metric="exact_match", value=None, task="gsm8k", **more):
    """``evaluate`` and ``save_results_samples``."""
    value = r.reward if value is None else value
    return {
        "doc_id": r.prompt, "doc": {"question": r.text, "answer": "#### 7", "task": task}, "target": "7",
        "arguments": {
            "gen_args_0": {"arg_0": f"Question: {r.text}\nAnswer:", "arg_1": {"until": ["Q:"], "do_sample": True}}
        },
        "resps": [[r.answer]], "filtered_resps": [r.answer[:3]], "filter": filter, "metrics": [metric],
        "doc_hash": f"{task}{r.prompt:060d}", "prompt_hash": f"{r.prompt:064x}",
        "target_hash": "a" * 64, metric: value, **more,
    }  # fmt: skip


def test_lm_eval_runs_are_repetitions_and_one_filter_counts(tmp_path):
    folder = tmp_path / "org__model"
    folder.mkdir()
    for number in range(8):
        own = [r for r in EVALUATION if r.number == number]
        rows = [sample(r) for r in own] + [sample(r, "flexible-extract", value=1.0) for r in own]
        write_lines(folder / f"samples_gsm8k_2026-01-0{number + 1}T10-00-00.123456.jsonl", rows)
        (folder / f"results_2026-01-0{number + 1}T10-00-00.json").write_text(
            json.dumps({"results": {"gsm8k": {"alias": "x"}}})
        )
    log = check(tmp_path, "lm-eval")
    assert any(note.startswith("left out: 96 × row of another filter") for note in log.notes)


def test_lm_eval_tasks_of_one_folder_have_the_same_numbers(tmp_path):
    rows = [sample(r) for r in EVALUATION if r.number == 0]
    choice = {
        "filtered_resps": [["-1.5", "False"], ["-0.5", "True"]],
        "resps": [[["-1.5", "False"]], [["-0.5", "True"]]],
        "arguments": {f"gen_args_{i}": {"arg_0": "Q", "arg_1": option} for i, option in enumerate((" A", " B"))},
    }
    other = [sample(r, "none", "acc", task="arc", acc_norm=0.0, **choice) for r in EVALUATION if r.number == 1]
    write_lines(tmp_path / "samples_gsm8k_2026-01-01T00-00-00.jsonl", rows)
    write_lines(tmp_path / "samples_arc_2026-01-01T00-00-00.jsonl", other)
    log = read_log(tmp_path)
    assert (len(log.ids), set(log.trials.tolist())) == (24, {1})
    assert log.successes.sum() == sum(r.reward for r in EVALUATION if r.number < 2)


def test_lm_eval_repeats(tmp_path):
    """``pass@1`` of a document is the mean over its repeats."""
    rows = []
    for r in [r for r in EVALUATION if r.number == 0]:
        own = [q for q in EVALUATION if q.prompt == r.prompt]
        answers = [q.answer for q in own]
        mean = sum(q.reward for q in own) / 8
        rows.append(sample(r, "create_test", "pass@1", mean, resps=[answers], filtered_resps=[answers]))
    check(write_lines(tmp_path / "samples_humaneval_2026-01-01T00-00-00.jsonl", rows), "lm-eval")


def inspected(r, error=None, **scores):
    """``EvalSample``, without what is None."""
    scores = scores or {
        "match": {"value": "C" if r.reward else "I", "answer": "7", "explanation": r.answer, "history": []}
    }
    usage = {"openai/m": {"input_tokens": 6, "output_tokens": r.tokens, "total_tokens": 6 + r.tokens}}
    said = {"role": "assistant", "content": r.answer, "source": "generate"}
    made = {
        "id": r.prompt + 1, "epoch": r.number + 1, "input": r.messages, "target": "7", "messages": [*r.messages, said],
        "output": {"model": "m", "choices": [{"message": said, "stop_reason": "stop"}], "completion": r.answer},
        "scores": scores, "metadata": {"level": 3}, "store": {}, "events": [{"event": "model", "timestamp": "x"}],
        "model_usage": usage, "role_usage": {}, "total_time": 1.5, "working_time": 1.0,
        "uuid": f"u{r.prompt}-{r.number}", "attachments": {}, "turn_count": 1,
    }  # fmt: skip
    return made if error is None else {k: v for k, v in made.items() if k != "scores"} | {"error": error}


ERROR = {"message": "gone", "traceback": "...", "traceback_ansi": "..."}
HEADER = {
    "version": 2, "status": "success", "eval": {"task": "gsm8k", "model": "openai/m", "dataset": {"samples": 12}},
    "plan": {"steps": [{"solver": "generate", "params": {}}]},
    "results": {"total_samples": 12, "completed_samples": 12, "scores": [{"name": "match", "metrics": {}}]},
    "stats": {"model_usage": {}}, "invalidated": False,
}  # fmt: skip
REDUCTIONS = [{"scorer": "match", "samples": [{"value": 1.0, "sample_id": 1}]}] * 200


def write_archive(path, samples):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("_journal/start.json", json.dumps({"version": 2, "eval": HEADER["eval"]}))
        for made in samples:
            file.writestr(f"samples/{made['id']}_epoch_{made['epoch']}.json", json.dumps(made))
        file.writestr("summaries.json", json.dumps([{"id": 1, "epoch": 1, "input": "x", "scores": {}}]))
        file.writestr("reductions.json", json.dumps(REDUCTIONS))
        file.writestr("header.json", json.dumps(HEADER))
    return path


def packed_by_zstandard(path, samples):
    """As Python 3.14 or ``zipfile_zstd`` writes it: method 93, two frames a member."""
    pa = pytest.importorskip("pyarrow")
    codec = pa.Codec("zstd")
    with zipfile.ZipFile(path, "w") as file:
        sizes = []
        for made in samples:
            content = json.dumps(made).encode()
            parts = [codec.compress(part, asbytes=True) for part in (content[:99], content[99:])]
            file.writestr(f"samples/{made['id']}_epoch_{made['epoch']}.json", b"".join(parts))
            sizes.append((zlib.crc32(content), len(content)))
        places = [(info.header_offset, info.compress_size) for info in file.infolist()]
    data = bytearray(path.read_bytes())
    central = data.index(b"PK\x01\x02")
    for (start, packed), (crc, size) in zip(places, sizes, strict=True):
        struct.pack_into("<H", data, start + 8, 93)
        struct.pack_into("<III", data, start + 14, crc, packed, size)
        struct.pack_into("<H", data, central + 10, 93)
        struct.pack_into("<III", data, central + 16, crc, packed, size)
        central += 46 + sum(struct.unpack_from("<HHH", data, central + 28))
    path.write_bytes(data)
    return path


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("write", [write_archive, packed_by_zstandard])
def test_inspect_archives(write, tmp_path):
    """Epochs are rollouts; a sample that was written anew counts once, as it was written last; one failed."""
    wrong = inspected(ROLLOUTS[0], match={"value": "C"})
    failed = {**inspected(ROLLOUTS[0], error=ERROR), "epoch": 9}
    path = write(tmp_path / "2026-01-01T00-00-00+00-00_gsm8k_AbCd.eval", [failed, wrong, *map(inspected, EVALUATION)])
    log = check(tmp_path, "inspect-ai")
    assert any("sample that failed" in note for note in log.notes)
    assert log.lengths.sum() == sum(r.tokens for r in EVALUATION)
    data = bytearray(path.read_bytes())
    place = data.index(b"samples/7_epoch_3.json") + 60
    data[place : place + 20] = b"\xff" * 20
    path.write_bytes(data)
    damaged = read_log(path)
    assert int(damaged.trials.sum()) == len(EVALUATION) - 1
    assert any("1 × sample that is damaged" in note for note in damaged.notes)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(InvalidInputError, match="cut short"):
        read_log(path)


def test_inspect_json(tmp_path):
    """A log with fewer samples than other lists that it holds; partial credit and no answer are said."""
    samples = [inspected(r) for r in shuffled(EVALUATION)]
    path = tmp_path / "log.json"
    path.write_text(json.dumps({**HEADER, "samples": samples, "reductions": REDUCTIONS}, indent=2))
    check(path, "inspect-ai")
    few = [
        inspected(r, match={"value": "P" if r.number == 0 else float("nan") if r.number == 1 else "N"})
        for r in of_step(1)[:8]
    ]
    path.write_text(json.dumps({**HEADER, "samples": few}))
    log = read_log(path)
    assert (log.successes.tolist(), log.trials.tolist()) == ([1], [7])


def test_inspect_with_several_scorers_asks_which(tmp_path):
    samples = [inspected(r, match={"value": "C" if r.reward else "I"}, style={"value": 0.3}) for r in EVALUATION]
    path = write_archive(tmp_path / "a.eval", samples)
    with pytest.raises(InvalidInputError, match=r"(?s)match, style.*--reward scores\.match"):
        read_log(path)
    check(path, "inspect-ai", columns=Columns(reward="scores.match"))


def table(rows):
    return json.dumps({"columns": list(rows[0]), "data": [list(row.values()) for row in rows]})


@pytest.mark.parametrize("grows", [False, True])
@pytest.mark.parametrize("has_step", [False, True])
def test_wandb_tables(grows, has_step, tmp_path):
    """``media/table/KEY_STEP_HASH.table.json``; a table that grows is written whole each time."""
    folder = tmp_path / "run-1" / "files" / "media" / "table"
    folder.mkdir(parents=True)
    for step in steps_of():
        own = [r for r in ROLLOUTS if r.step <= step] if grows else of_step(step)
        rows = [
            {"prompt": r.text, "completion": r.answer, "reward": r.reward, **({"step": r.step} if has_step else {})}
            for r in own
        ]
        (folder / f"rollouts_{step}_{step:020x}.table.json").write_text(table(rows))
        (folder / f"val_samples_{step}_{step:020x}.table.json").write_text(table(rows))
    log = check(tmp_path, "trl" if has_step else "wandb", ROLLOUTS)  # TRL's own columns
    assert history_of(log) == history(ROLLOUTS)
    assert any("6 files of evaluations passed over" in note for note in log.notes)


def test_wandb_tables_of_several_keys_are_told_apart(tmp_path):
    for key in ("first", "second"):
        for step in steps_of():
            rows = [{"prompt": r.text, "reward": r.reward} for r in of_step(step)]
            (tmp_path / f"{key}_{step}_{step:020x}.table.json").write_text(table(rows))
    assert [len(source.files) for source in find_sources(tmp_path)] == [6, 6]


def test_tinker_cookbook_benchmarks(tmp_path):
    """``StoredTrajectory.to_dict``."""
    rows = [
        {
            "idx": i, "benchmark": "gsm8k", "example_id": f"gsm8k-{r.prompt:08x}", "reward": r.reward,
            "turns": [{"role": "user", "content": r.text, "token_count": 6, "metadata": {}},
                      {"role": "assistant", "content": r.answer, "token_count": r.tokens, "metadata": {}}],
            "metrics": {"correct": r.reward}, "logs": {"expected": "7"}, "error": None, "time_seconds": 0.1,
        }
        for i, r in enumerate(shuffled(EVALUATION))
    ]  # fmt: skip
    (tmp_path / "gsm8k").mkdir()
    write_lines(tmp_path / "gsm8k" / "trajectories.jsonl", [*rows, {**rows[0], "error": "timeout", "reward": 0.0}])
    (tmp_path / "gsm8k" / "result.json").write_text(
        json.dumps({"name": "gsm8k", "score": 0.5, "pass_at_k": {"1": 0.5}})
    )
    check(tmp_path, "tinker-cookbook-eval")
