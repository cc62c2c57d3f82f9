"""Whatever bytes a log holds, reading it gives a sound log or an error that explains itself."""

import csv
import gzip
import io
import json
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allotment.audit import Columns, read_log
from allotment.errors import AllotmentError
from allotment.registry import LOG_FORMATS

KEYS = [
    "prompt_id", "prompt", "step", "round", "n", "successes", "tokens", "rollouts_per_visit", "input", "output",
    "score", "completion", "reward", "advantage", "uid", "acc", "rewards", "rollouts", "content", "pass_rate",
]  # fmt: skip
WRITERS = {
    "nemo-rl": "content rewards filtered_rewards token_ids token_loss_mask",
    "prime-rl": "traces task env group ok",
    "slime": "group_index prompt response_length reward status rollout_id",
    "slime-train": "tokens response_lengths data_parallel_rank raw_reward rewards rollout_id rollout_ids",
    "skyrl": "input_prompt output_response score env_class",
    "skyrl-agent": "messages reward trajectory_format",
    "areal": "task_id sample_idx tail_version reward prompt seqlen prompt_len",
    "open-instruct": "step prompt_tokens response_tokens reward finish_reason",
    "tinker-cookbook": "iteration group_idx traj_idx total_reward steps split",
    "tinker-cookbook-eval": "benchmark example_id turns reward error",
    "verifiers": "example_id prompt completion reward error task token_usage",
    "lm-eval": "doc_id doc resps filtered_resps filter metrics acc arguments doc_hash",
    "inspect-ai": "id epoch input scores error model_usage",
}
"""Keys of the rows of each writer."""
FORMATS = [None, *LOG_FORMATS.names]
COLUMNS = [
    Columns(),
    Columns(id="prompt_id", step="step", reward="reward"),
    Columns(reward="score", tokens="n"),
    Columns(id="prompt_id", nested="rollouts", reward="reward"),
    Columns(prompt="prompt", reward="successes", trials="n"),
    Columns(id="rollouts.0", reward="content.score", group="uid", rollout="acc"),
]

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(0, 9), st.floats(), st.text(max_size=8),
    st.sampled_from([10**400, -1, 2**53, 2**63, 1e308, "1e999", "nan", "7", "true", "\ud800", "\x00"]),
)  # fmt: skip
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=2)
)
json_rows = st.lists(st.dictionaries(st.sampled_from(KEYS), values, max_size=len(KEYS)) | values, max_size=8)


@st.composite
def sound_rows(draw):
    """Rows of one format with values that mostly make sense."""
    small = st.integers(0, 4)
    rows = {
        "run": st.fixed_dictionaries({"prompt_id": scalars, "step": small, "n": st.just(4), "successes": small}),
        "counts": st.fixed_dictionaries(
            {"prompt_id": scalars, "rollouts_per_visit": st.just(4), "successes": st.lists(small, max_size=3)}
        ),
        "verl": st.fixed_dictionaries(
            {"input": st.text(max_size=2), "output": st.text(), "score": small | scalars, "step": small}
        ),
        "trl": st.fixed_dictionaries(
            {"prompt": st.text(max_size=2) | values, "completion": values, "step": small, "reward": small | scalars}
        ),
    }
    return draw(st.lists(draw(st.sampled_from(list(rows.values()))), min_size=1, max_size=8))


INNER = [
    "agent", "trainable", "rewards", "correct", "score", "weight", "calls", "usage", "completion_tokens", "data", "key",
    "metrics", "logs", "problem", "ac_len", "role", "content", "value", "gen_args_0", "arg_0", "arg_1", "output_tokens",
]  # fmt: skip
inner_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(INNER), inner, max_size=4)
)


@st.composite
def writers_rows(draw):
    """Rows with the keys of one writer and any values, some of which most rows share."""
    keys = WRITERS[draw(st.sampled_from(list(WRITERS)))].split()
    usual = draw(st.fixed_dictionaries(dict.fromkeys(keys, inner_values)))
    changes = st.dictionaries(st.sampled_from(keys), inner_values, max_size=2)
    return [{**usual, **changed} for changed in draw(st.lists(changes, min_size=1, max_size=6))]


@st.composite
def damaged(draw, base):
    """``base`` with up to four pieces replaced by others."""
    data = bytearray(draw(base))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(data)))
        data[start : start + draw(st.integers(0, 12))] = draw(
            st.binary(max_size=8) | st.sampled_from([b"\n", b'"', b"[" * 999])
        )
    return bytes(data)


def jsonl(rows):
    return "\n".join(json.dumps(row) for row in rows).encode()


def table(rows):
    rows = [row for row in rows if isinstance(row, dict)]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode("utf-8", "replace")


def parquet(rows):
    import pyarrow as pa
    from pyarrow.parquet import write_table

    out = io.BytesIO()
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    write_table(pa.table({key: _alike(values) for key, values in columns.items()}), out)
    return out.getvalue()


def _alike(values):
    """``values``, or their texts where they are not all small whole numbers: a parquet column is of one type."""
    if all(type(value) is int and 0 <= value < 5 for value in values):
        return values
    return [str(value).encode("utf-8", "replace").decode() for value in values]


def check(path, form, columns):
    try:
        log = read_log(path, form, columns)
    except (AllotmentError, OSError):
        return
    assert len(log.visit) > 0
    assert (log.trials >= 1).all()
    assert ((log.successes >= 0) & (log.successes <= log.trials)).all()
    assert (log.visit >= 1).all()
    assert log.prompt.max() < len(log.ids)
    assert log.lengths is None or (np.isfinite(log.lengths).all() and (log.lengths >= 0).all())
    assert log.texts is None or len(log.texts) == len(log.ids)
    assert sorted(np.concatenate(log.batches(128, 0)).tolist()) == list(range(len(log.visit)))


def document(rows):
    return json.dumps(rows).encode()


def archive(rows):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        for number, row in enumerate(rows):
            file.writestr(f"samples/{number}.json", json.dumps(row))
    return out.getvalue()


def stream(rows):
    import pyarrow as pa

    out = io.BytesIO()
    columns = {key: _alike([row[key] for row in rows]) for key in rows[0]}
    made = pa.table(columns)
    with pa.ipc.new_stream(out, made.schema) as file:
        file.write_table(made)
    return out.getvalue()


def tensors(rows):
    import torch

    out = io.BytesIO()
    torch.save({"rollout_id": 3, "samples": rows, "raw_reward": [1.0] * len(rows)}, out)
    return out.getvalue()


written = {
    "table.json": (sound_rows() | writers_rows()).map(
        lambda rows: document({"columns": list(rows[0]), "data": [list(r.values()) for r in rows]})
    ),
    "eval": writers_rows().map(archive) | damaged(writers_rows().map(archive)),
    "arrow": sound_rows().map(stream) | damaged(sound_rows().map(stream)),
    "json": (sound_rows() | writers_rows() | json_rows | values).map(document) | damaged(sound_rows().map(document)),
    "jsonl.gz": sound_rows().map(jsonl).map(gzip.compress) | damaged(sound_rows().map(jsonl).map(gzip.compress)),
    "tsv": sound_rows().map(table) | st.binary(max_size=200),
    "jsonl": (sound_rows() | writers_rows()).map(jsonl)
    | damaged((json_rows | writers_rows()).map(jsonl))
    | st.binary(max_size=200),
    "csv": sound_rows().map(table) | damaged((json_rows | sound_rows()).map(table)) | st.binary(max_size=200),
    "parquet": sound_rows().map(parquet) | damaged(sound_rows().map(parquet)) | st.binary(max_size=200),
}


NEEDS = {"parquet": "pyarrow", "arrow": "pyarrow"}


@pytest.mark.parametrize("ending", list(written))
@given(data=st.data())
def test_reading_anything(tmp_path_factory, ending, data):
    if ending in NEEDS:
        pytest.importorskip(NEEDS[ending])
    path = tmp_path_factory.getbasetemp() / f"fuzz.{ending}"
    path.write_bytes(data.draw(written[ending]))
    check(path, data.draw(st.none() | st.sampled_from(FORMATS)), data.draw(st.sampled_from(COLUMNS)))


@settings(max_examples=20)
@given(data=writers_rows().map(tensors) | damaged(writers_rows().map(tensors)))
def test_reading_any_tensor_file(tmp_path_factory, data):
    pytest.importorskip("torch")
    path = tmp_path_factory.getbasetemp() / "fuzz.pt"
    path.write_bytes(data)
    check(path, None, Columns())
