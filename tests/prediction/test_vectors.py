"""Embeddings in blocks: however they come, the same prompts have the same vectors."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from allotment.errors import DuplicatePromptError, InvalidInputError, UnknownPromptError
from allotment.prompts import embeddings as module
from allotment.prompts.embeddings import EmbeddedPrompts

X = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)


def registered(parts):
    prompts, start = EmbeddedPrompts(), 0
    for size in parts:
        prompts.register(range(start, start + size), X[start : start + size])
        start += size
    return prompts


@given(st.lists(st.integers(0, 12), max_size=5), st.integers(1, 16))
def test_it_does_not_matter_in_which_parts_they_come(parts, merged_rows):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MERGED_ROWS", merged_rows)
        prompts, total = registered(parts), sum(parts)
        order = np.random.default_rng(0).permutation(total)
        got = prompts.rows(prompts.index.rows(order.tolist()))
    assert len(prompts) == total
    assert got.dtype == np.float32
    if total:
        np.testing.assert_array_equal(got, X[order])


def test_one_by_one_leaves_few_blocks():
    prompts = registered([1] * 60)
    assert len(prompts._blocks) <= np.log2(60) + 1
    np.testing.assert_array_equal(prompts.rows(np.arange(60)), X)


def test_many_float32_rows_are_kept_and_others_copied():
    many = np.zeros((module.MERGED_ROWS + 1, 2), dtype=np.float32)
    prompts = EmbeddedPrompts()
    prompts.register(range(len(many)), many)
    prompts.register([-1], [[1.0, 2.0]])
    assert np.shares_memory(prompts._blocks[0], many)
    few, x = EmbeddedPrompts(), X.copy()
    few.register(range(60), x)
    x[:] = 0.0
    np.testing.assert_array_equal(few.rows(np.arange(60)), X)


def test_known_prompts_are_passed_over_with_the_same_vector_only():
    prompts = registered([5])
    prompts.register([3, "new", 4], X[[3, 10, 4]])
    assert prompts.index.ids == [0, 1, 2, 3, 4, "new"]
    np.testing.assert_array_equal(prompts.rows(prompts.index.rows(["new", 3])), X[[10, 3]])
    with pytest.raises(InvalidInputError, match="another embedding"):
        prompts.register(["newer", 3], X[[11, 4]])
    assert "newer" not in prompts.index


BAD = {
    "not finite": (["a", "b"], [[0, 0, 0], [0, np.nan, 0]], "finite"),
    "too large for float32": (["a"], [[0, 0, 1e39]], "finite"),
    "another dimension": (["a"], [[0, 0]], "shape"),
    "a lone vector": (["a"], [0, 0, 0], "shape"),
    "too many": (["a"], [[0, 0, 0], [1, 1, 1]], "shape"),
    "no ids": ([], [[0, 0, 0]], "shape"),
    "text": (["a"], [["x", "y", "z"]], "not numbers"),
    "ragged": (["a", "b"], [[0, 0, 0], [1, 1]], "not numbers"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_vectors_change_nothing(case):
    ids, vectors, told = BAD[case]
    prompts = registered([5])
    with pytest.raises(InvalidInputError, match=told):
        prompts.register(ids, vectors)
    assert prompts.index.ids == [0, 1, 2, 3, 4]
    assert sum(len(block) for block in prompts._blocks) == 5


def test_bad_ids_change_nothing():
    prompts = registered([5])
    with pytest.raises(DuplicatePromptError):
        prompts.register(["a", "a"], X[:2])
    with pytest.raises(UnknownPromptError, match="register"):
        prompts.index.rows(["a"])
    assert len(prompts) == 5
