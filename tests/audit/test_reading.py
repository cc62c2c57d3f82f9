"""Reading logs: both formats, and every way in which a file can be wrong."""

import json

import numpy as np
import pytest
from audit_cases import as_run_rows, count_rows, simulated, write_lines

from allotment.audit import Settings, read_log, replay
from allotment.errors import InvalidInputError
from allotment.prediction import DiscountedCounts


def test_the_count_format(tmp_path):
    rows = [
        {"prompt_id": "x", "prompt": "one", "answer": "1", "rollouts_per_visit": 8, "successes": [0, 8, 3]},
        {"prompt_id": 7, "prompt": "two", "rollouts_per_visit": [4, 16], "successes": [4, 0]},
        {"prompt_id": 8, "prompt": "three", "rollouts_per_visit": 8, "successes": []},
    ]
    log = read_log(write_lines(tmp_path / "log.jsonl", rows))
    assert (log.ids, log.texts, log.notes) == (("x", 7, 8), ("one", "two", "three"), ())
    assert log.order_is_assumed
    np.testing.assert_array_equal(log.prompt, [0, 0, 0, 1, 1])
    np.testing.assert_array_equal(log.visit, [1, 2, 3, 1, 2])
    np.testing.assert_array_equal(log.successes, [0, 8, 3, 4, 0])
    np.testing.assert_array_equal(log.trials, [8, 8, 8, 4, 16])


def test_the_run_format_adds_up_rounds_and_numbers_visits(tmp_path):
    rows = [
        {"prompt_id": "b", "step": 2, "round": 0, "n": 4, "successes": 1},
        {"prompt_id": "a", "step": 1, "round": 0, "n": 3, "successes": 3},
        {"prompt_id": "b", "step": 2, "round": 1, "n": 6, "successes": 2},
        {"prompt_id": "a", "step": 5, "n": 5, "successes": 0},
        {"prompt_id": "c", "step": 5, "n": 0, "successes": 0},
    ]
    log = read_log(write_lines(tmp_path / "rollouts.jsonl", rows))
    visits = [
        (log.ids[q], *rest) for q, *rest in zip(log.prompt, log.visit, log.successes, log.trials, log.step, strict=True)
    ]
    assert visits == [("a", 1, 3, 3, 1), ("b", 1, 3, 10, 2), ("a", 2, 0, 5, 5)]
    assert [batch.tolist() for batch in log.batches(128, seed=0)] == [[0], [1], [2]]
    assert not log.order_is_assumed
    assert log.texts is None
    assert "rounds" in log.notes[0]


def test_both_formats_give_the_same_figures(tmp_path):
    log, _ = simulated(np.random.default_rng(0), n_prompts=50, n_visits=5)
    counts = read_log(write_lines(tmp_path / "c.jsonl", count_rows(log.successes.reshape(50, 5))))
    settings = Settings(batch=16, seed=3)
    run = read_log(write_lines(tmp_path / "r.jsonl", as_run_rows(counts, counts.batches(16, seed=3))))
    first, second = replay(counts, DiscountedCounts(), settings), replay(run, DiscountedCounts(), Settings(seed=3))
    np.testing.assert_array_equal(first.counts[np.concatenate(counts.batches(16, seed=3))], second.counts)
    for span, figures in first.by_range().items():  # the same visits, summed in another order
        assert vars(second.by_range()[span]) == pytest.approx(vars(figures), rel=1e-12)
    other_order = replay(counts, DiscountedCounts(), Settings(batch=16, seed=4))
    assert other_order.by_range() != first.by_range()


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_a_last_line_cut_short_is_left_out_and_said(tmp_path, cut):
    path = tmp_path / "log.jsonl"
    rows = count_rows([[1, 2], [3, 4], [5, 6]])
    rows[2]["prompt"] = "é" * 40
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.write_bytes(data[: -1 - cut])
    log = read_log(path)
    assert log.ids == (0, 1)
    assert log.notes == ("1 line left out: line 3, the last one, is cut short",)
    path.write_bytes(data[:-1])  # only the newline is gone: nothing is lost
    assert read_log(path).ids == (0, 1, 2)
    assert read_log(path).notes == ()


GOOD = {"prompt_id": 0, "rollouts_per_visit": 8, "successes": [1]}
RUN = {"prompt_id": 0, "step": 1, "n": 8, "successes": 1}


@pytest.mark.parametrize(
    ("rows", "line", "said"),
    [
        ([GOOD, GOOD], 2, "stands twice"),
        ([GOOD, {**GOOD, "prompt_id": 1, "successes": [9]}], 2, "9 of 8"),
        ([{**GOOD, "successes": [-1]}], 1, "-1"),
        ([{**GOOD, "successes": [1.0]}], 1, "1.0"),
        ([{**GOOD, "successes": [True]}], 1, "True"),
        ([{**GOOD, "successes": [None]}], 1, "None"),
        ([{**GOOD, "successes": 3}], 1, "not a list"),
        ([{**GOOD, "rollouts_per_visit": 0}], 1, "rollouts_per_visit"),
        ([{**GOOD, "rollouts_per_visit": "8"}], 1, "rollouts_per_visit"),
        ([{**GOOD, "rollouts_per_visit": 10**30}], 1, "rollouts_per_visit"),
        ([{**GOOD, "rollouts_per_visit": [8, 8]}], 1, "2 numbers for 1 visits"),
        ([{**GOOD, "prompt_id": 1.5}], 1, "prompt_id"),
        ([{**GOOD, "prompt_id": True}], 1, "prompt_id"),
        ([{**GOOD, "prompt": 3}], 1, "prompt is not a text"),
        ([GOOD, {"prompt_id": 1, "rollouts_per_visit": 8}], 2, "no 'successes'"),
        ([{"prompt_id": 1, "loss": 1}], 1, "unknown format"),
        ([{}], 1, "unknown format"),
        ([GOOD, [1, 2]], 2, "not a JSON object"),
        ([RUN, RUN], 2, "stands twice"),
        ([RUN, {**RUN, "step": 2, "successes": 9}], 2, "9 of 8"),
        ([RUN, {**RUN, "step": "2"}], 2, "step"),
        ([RUN, {**RUN, "step": 2, "n": 2.5}], 2, "n is not a count"),
        ([RUN, {**RUN, "step": 2, "round": -1}], 2, "round"),
        ([RUN, GOOD], 2, "no 'step'"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, rows, line, said):
    with pytest.raises(InvalidInputError) as caught:
        read_log(write_lines(tmp_path / "log.jsonl", rows))
    assert f"line {line}:" in str(caught.value)
    assert said in str(caught.value)
    assert "fix:" in str(caught.value)


@pytest.mark.parametrize("damage", [b'{"prompt_id": 1, "succ\n', b"\xff\xfe\xff\n", b"[[[[\n", b"[" * 100_000 + b"\n"])
def test_a_damaged_line_before_the_last_is_an_error(tmp_path, damage):
    path = tmp_path / "log.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b"\n\n" + damage)
    with pytest.raises(InvalidInputError, match="line 3: not JSON"):
        read_log(path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n",
        '{"prompt_id": 0, "rollo',
        json.dumps({**GOOD, "successes": []}),
        json.dumps({**RUN, "n": 0, "successes": 0}),
    ],
)
def test_a_log_without_visits_is_refused(tmp_path, text):
    path = tmp_path / "log.jsonl"
    path.write_text(text)
    with pytest.raises(InvalidInputError, match="holds no visits"):
        read_log(path)


def test_texts_are_all_or_none_and_single_rollouts_are_noted(tmp_path):
    rows = [{**GOOD, "prompt": "here"}, {**GOOD, "prompt_id": 1, "rollouts_per_visit": 1}]
    log = read_log(write_lines(tmp_path / "log.jsonl", rows))
    assert log.texts is None
    assert log.notes == ("1 of 2 prompts have no text", "1 visits of one rollout say nothing about variance")
