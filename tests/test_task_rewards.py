"""Verifiers as reward functions, called as TRL calls them."""

import os
import subprocess
import sys

import pytest

from allotment.errors import ConfigError, InvalidInputError
from allotment.tasks.datasets import load_rows
from allotment.tasks.rewards import MathPool, make_reward


def score(reward, completions, **columns):
    count = len(completions)
    return reward(prompts=["p"] * count, completions=completions, completion_ids=[[0]] * count, **columns)


def test_the_verifier_follows_the_source():
    assert make_reward(source="reasoning-gym:gcd").__name__ == "reasoning_gym"
    assert make_reward(source="data.jsonl").__name__ == "exact"
    assert make_reward("exact", source="reasoning-gym:gcd").__name__ == "exact"


@pytest.mark.parametrize("settings", [{"verifier": "llm"}, {"verifier": "exact", "rule": "first_line"}])
def test_unknown_names_are_refused(settings):
    with pytest.raises(ConfigError, match="unknown"):
        make_reward(**settings)


def test_exact_compares_texts_and_messages():
    reward = make_reward("exact", rule="last_line")
    messages = [
        {"role": "tool", "content": "8"},
        {"role": "assistant", "content": "so\n7 "},
        {"role": "tool", "content": ""},
    ]
    assert score(reward, ["it is\n7", "7!", "", messages, [], "7"], answer=[" 7", *["7"] * 4, None]) == [
        1.0,
        0.0,
        0.0,
        1.0,
        0.0,
        None,
    ]


def test_the_share_of_unscorable_completions_is_logged():
    logged = {}
    score(make_reward("exact"), ["7", "7"], answer=["7", None], log_metric=logged.__setitem__)
    assert logged == {"unscorable/exact": 0.5}


@pytest.mark.parametrize(
    ("verifier", "columns", "said"),
    [
        ("exact", {}, "a column 'answer'"),
        ("exact", {"solution": ["7"]}, "got:     solution"),
        ("reasoning-gym", {"answer": ["7"]}, "a column 'entry'"),
        ("exact", {"answer": ["7", "8"]}, "1 prompts, 1 completions, 2 of answer"),
    ],
)
def test_columns_that_do_not_fit_are_refused(verifier, columns, said):
    with pytest.raises(InvalidInputError, match=said):
        score(make_reward(verifier), ["7"], **columns)


def test_reasoning_gym_gives_full_score_or_nothing_unless_asked():
    row = load_rows("reasoning-gym:chain_sum", size=1)[0]
    right = row["answer"]
    completions = [f"so <answer>{right}</answer>", f"<answer>{right}1</answer>", right, "<answer></answer>"]
    entries = [row["entry"]] * 4
    assert score(make_reward("reasoning-gym"), completions, entry=entries) == [1.0, 0.0, 0.0, 0.0]
    partial = score(make_reward("reasoning-gym", strict=False), completions, entry=entries)
    assert partial[0] == 1.0
    assert 0 < partial[1] < 1


@pytest.mark.parametrize("name", ["arc_agi", "rearc", "gcd", "countdown", "kakurasu"])
def test_the_right_answer_scores_after_the_entry_was_text(name):
    row = load_rows(f"reasoning-gym:{name}", size=1, seed=1)[0]
    assert score(make_reward("reasoning-gym", rule="whole"), [row["answer"]], entry=[row["entry"]]) == [1.0]


@pytest.fixture(scope="module")
def mathematics():
    pytest.importorskip("math_verify")
    reward = make_reward("math-verify", limit=10.0, workers=1)
    yield reward
    reward.close()


@pytest.mark.parametrize(
    ("gold", "completion", "value"),
    [
        ("1/2", "0.5", 1.0),
        ("1/2", r"That makes \boxed{\frac{1}{2}}.", 1.0),
        ("42", "The answer is 43.", 0.0),
        ("x^2+2x+1", "(x+1)^2", 1.0),
        (r"$\{1, 2\}$", r"$\{2, 1\}$", 1.0),
        ("1,000", "it is $1000$", 1.0),
        ("3", "I do not know", 0.0),
        ("3", "", 0.0),
        ("", "3", None),
    ],
)
def test_mathematics_is_compared_by_value(mathematics, gold, completion, value):
    assert score(mathematics, [completion], answer=[gold]) == [value]


def test_a_hanging_comparison_is_ended_and_the_next_ones_are_not_lost():
    """The power is one operation in C that no Python-level time limit interrupts."""
    pytest.importorskip("math_verify")
    pool = MathPool(limit=2.0, workers=1)
    try:
        assert pool.compare(["3"] * 4, ["3", "$10^{10^{10}}$", "3", "4"]) == [1.0, None, 1.0, 0.0]
        assert pool.compare(["3"], ["3"]) == [1.0]
    finally:
        pool.close()


def test_processes_end_with_the_program():
    pytest.importorskip("math_verify")
    script = (
        "from allotment.tasks.rewards import MathPool\n"
        "pool = MathPool(limit=60, workers=1)\n"
        "pool.compare(['3'], ['3'])\n"
        "print(pool._workers[0]._process.pid)\n"
    )  # no __main__ guard, as in many training scripts
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    with pytest.raises(ProcessLookupError):
        os.kill(int(result.stdout), 0)


@pytest.mark.parametrize("settings", [{"limit": 0}, {"workers": 0}])
def test_a_pool_needs_time_and_a_process(settings):
    pytest.importorskip("math_verify")
    with pytest.raises(InvalidInputError, match="math pool"):
        MathPool(**settings)
