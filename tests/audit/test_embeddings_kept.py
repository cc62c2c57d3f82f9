"""Embeddings of a log's prompts: by torch as by numpy, kept beside the log, never an error."""

import sys

import numpy as np
import pytest

from allotment.audit import Log
from allotment.audit import embeddings as module
from allotment.audit.embeddings import cache_of, kept_embeddings, prompt_embeddings
from allotment.prediction import embed
from allotment.prediction.embedding import DIMENSION

TEXTS = ("How many primes are below 100? " * 3, "Spell 'cat' backward.", "x", "Prove that 2 is even. " * 90, "")


def log_of(texts):
    many = np.arange(len(texts))
    return Log(tuple(many.tolist()), many, many * 0 + 1, many * 0, many * 0 + 8, texts=tuple(texts))


def test_torch_and_numpy_agree(monkeypatch):
    pytest.importorskip("torch")
    by_numpy = embed(TEXTS, batch_size=2)
    np.testing.assert_allclose(embed(TEXTS, batch_size=2, torch=True), by_numpy, atol=2e-6)
    monkeypatch.setitem(sys.modules, "torch", None)
    np.testing.assert_array_equal(embed(TEXTS, batch_size=2, torch=True), by_numpy)


@pytest.fixture
def counted(monkeypatch):
    """The texts that were embedded, call by call; the vectors are their lengths."""
    calls = []

    def lengths(texts, **options):
        calls.append(list(texts))
        return np.array([[len(text), 1.0] for text in texts], dtype=np.float32)

    monkeypatch.setattr(module, "embed", lengths)
    monkeypatch.setattr(module, "KEPT_FROM", 10)
    return calls


def test_they_are_made_once_for_the_same_texts(tmp_path, counted):
    path, log = tmp_path / "log.jsonl", log_of(["one text", "another one"])
    first = prompt_embeddings(log, beside=path)
    assert cache_of(path).name == ".log.jsonl.embeddings.safetensors"
    assert [file.name for file in tmp_path.iterdir()] == [cache_of(path).name]  # whole, nothing else left
    np.testing.assert_array_equal(prompt_embeddings(log, beside=path), first)
    assert len(counted) == 1
    for other in (["another one", "one text"], ["one text", "another"], ["one text", "another one", "more"]):
        assert kept_embeddings(log_of(other), path) is None
        prompt_embeddings(log_of(other), beside=path)
    assert len(counted) == 4
    cache_of(path).write_bytes(cache_of(path).read_bytes()[:-3])
    assert kept_embeddings(log_of(other), path) is None
    assert prompt_embeddings(log_of(other), beside=path).shape == (3, 2)


def test_short_work_and_named_files_leave_nothing_beside(tmp_path, counted):
    prompt_embeddings(log_of(["ab", "cd"]), beside=tmp_path / "short.jsonl")
    prompt_embeddings(log_of(["one text", "another one"]), tmp_path / "named.npy", beside=tmp_path / "log.jsonl")
    assert [file.name for file in tmp_path.iterdir()] == ["named.npy"]


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path, counted):
    path = tmp_path / "gone" / "log.jsonl"  # as for a folder without permission, which root would have
    assert prompt_embeddings(log_of(["one text", "another one"]), beside=path).shape == (2, 2)
    assert not path.parent.exists()


def test_the_packaged_model_is_kept_to_the_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "KEPT_FROM", 10)
    log, path = log_of(TEXTS), tmp_path / "log"
    made = prompt_embeddings(log, beside=path)
    assert made.shape == (len(TEXTS), DIMENSION)
    np.testing.assert_array_equal(kept_embeddings(log, path), made)
