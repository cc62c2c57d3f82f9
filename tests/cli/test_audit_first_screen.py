"""What stands before everything else in ``allotment audit``: a sentence, what to do, and what undermines both."""

import json

import numpy as np
import pytest

from allotment.cli.main import main


def write(path, successes, trials=8, steps=True, **more):
    """Success counts [visits][prompts] as a table of rollouts; ``trials`` a number or [visits][prompts]."""
    rows = [
        {"prompt": f"question {q}", **({"step": step} if steps else {}), "reward": float(j < k), "tokens": 50, **more}
        for step, row in enumerate(successes, start=1)
        for q, k in enumerate(row)
        for j in range(trials if isinstance(trials, int) else trials[step - 1][q])
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def drawn(prompts=60, visits=4, trials=8):
    rng = np.random.default_rng(0)
    return rng.binomial(trials, rng.beta(0.4, 0.4, prompts), size=(visits, prompts))


def first_screen(capsys, path, *more):
    """The lines before the first table of predictors; the same object as JSON."""
    status = main(["audit", str(path), "--predictor", "hierarchical", *more])
    out = capsys.readouterr().out
    assert status == 0
    screen = out[: out.index("\nepoch ")]
    assert main(["audit", str(path), "--predictor", "hierarchical", "--json", *more]) == 0
    return screen, json.loads(capsys.readouterr().out)["audit"]


def test_one_screen_says_what_to_do(capsys, tmp_path):
    screen, audit = first_screen(capsys, write(tmp_path / "log.jsonl", drawn()))
    assert screen.splitlines()[3].startswith("in short: ")
    assert "fewer rollouts for the same gradient precision" in screen
    assert screen.index("in short: ") < screen.index("what to do: Let Allotment split") < screen.index("8 split")
    assert 'planner="vip", num_generations=8' in screen
    assert len(screen.splitlines()) <= 40
    assert "variance" not in screen[: screen.index("8 split")]
    ways = {(way["what"], way["rollouts_per_prompt"]): way for way in audit["counterfactuals"]["found"]}
    whole = ways["split, belief", 4]["by_range"]["all"]
    assert whole["variance"]["low"] < whole["variance"]["value"] < whole["variance"]["high"]
    assert f"{100 * whole['rollouts']['value']:.0f} ({100 * whole['rollouts']['low']:.0f} to " in screen
    assert set(ways["split", 8]["by_range"]) == {"1", "2", "3-10", "all"}
    for step in audit["advice"]:
        assert step in screen


@pytest.mark.parametrize(
    ("successes", "said", "to_do"),
    [
        (np.zeros((3, 20), int), "every prompt failed every time", "Train on easier prompts"),
        (np.full((3, 20), 8), "every prompt was solved every time", "Train on harder prompts"),
        (np.array([[0, 8] * 10] * 3), "no prompt was sometimes solved", "from these nothing is learnt"),
    ],
)
def test_nothing_to_learn(capsys, tmp_path, successes, said, to_do):
    screen, audit = first_screen(capsys, write(tmp_path / "log.jsonl", successes))
    assert said in screen.partition("in short: ")[2].splitlines()[0]
    assert to_do in screen
    assert audit["verdict"]["outcome"] == "cannot say"
    assert audit["counterfactuals"]["found"] == []


def test_one_visit_only(capsys, tmp_path):
    screen, audit = first_screen(capsys, write(tmp_path / "log.jsonl", drawn(visits=1)))
    assert "every prompt was visited once" in screen.partition("in short: ")[2].splitlines()[0]
    assert "Audit a longer run" in screen
    assert "one epoch only" in screen
    assert audit["verdict"]["outcome"] == "cannot say"


def test_a_few_huge_groups(capsys, tmp_path):
    successes, trials = drawn(), np.full((4, 60), 8)
    successes[0, :3], trials[0, :3] = 200, 512
    screen, audit = first_screen(capsys, write(tmp_path / "log.jsonl", successes, trials.tolist()))
    share = 3 * 512 / trials.sum()
    said = f"3 groups are far larger than the usual 8 rollouts, up to 512: {100 * share:.0f} % of all rollouts"
    assert said in screen.partition("in short: ")[2].splitlines()[0]
    assert "Clear up that doubt first" in screen
    assert "num_generations" not in screen  # nothing to begin with yet
    assert "8 rollouts a prompt that you pay for now" in screen or "8 rollouts for every prompt" in screen
    assert audit["verdict"]["first_look"][0].startswith(said)


def test_merged_prompts(capsys, tmp_path):
    """Texts that are the same for two prompts of a step make groups of twice the size."""
    successes = drawn()
    path = write(tmp_path / "log.jsonl", successes)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    merged = [row | {"prompt": "question 0"} if row["prompt"] == "question 1" else row for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in merged))
    screen, _ = first_screen(capsys, path)
    assert "4 groups are far larger than the usual 8 rollouts, up to 16: 3 % of all rollouts" in screen
    assert "taken for one another" in screen


def test_one_prompt_with_most_of_the_rollouts(capsys, tmp_path):
    successes = drawn(visits=40, prompts=60)
    path = write(tmp_path / "log.jsonl", [row if step < 4 else row[:1] for step, row in enumerate(successes)])
    screen, _ = first_screen(capsys, path)
    assert f"one prompt has {100 * 40 / (4 * 59 + 40):.0f} % of all rollouts" in screen
    assert "'question 0'" in screen


def test_uneven_counts_of_a_planner_are_nothing_unusual(capsys, tmp_path):
    rng = np.random.default_rng(1)
    trials = rng.choice([3, 3, 5, 8, 16, 30], size=(4, 60))
    successes = rng.binomial(trials, rng.beta(1, 1, 60))
    _, audit = first_screen(capsys, write(tmp_path / "log.jsonl", successes, trials.tolist()))
    assert audit["verdict"]["first_look"] == []


def test_a_filtered_log(capsys, tmp_path):
    successes = drawn(visits=6)
    rows = [[k if 0 < k < 8 else None for k in row] for row in successes]
    path = tmp_path / "log.jsonl"
    lines = [
        {"prompt": f"question {q}", "step": step, "reward": float(j < k), "tokens": 50}
        for step, row in enumerate(rows)
        for q, k in enumerate(row)
        if k is not None
        for j in range(8)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    screen, audit = first_screen(capsys, path)
    assert "rollouts were filtered before it was written" in screen
    assert "Log rollouts before they are filtered" in screen
    assert audit["counterfactuals"]["found"] == []
