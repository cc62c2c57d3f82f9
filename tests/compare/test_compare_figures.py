"""The figures of hand-made runs, worked out by hand."""

import json
import math

import pytest

from allotment.compare import Comparison, as_json, as_text, finished_runs, lines
from allotment.compare.table import verdict
from allotment.lab.config import TrainConfig
from allotment.report.summary import Estimate

SETTINGS = TrainConfig(steps=2, evaluate_every=1, prompts_per_step=4)


@pytest.fixture
def compared(tmp_path):
    """Writes the runs named, and hands back the comparison with its lines at 8 rollouts a prompt."""

    def compare(runs, planners=("vip",), seeds=2, yardsticks=False, timed=True):
        comparison = Comparison(tmp_path, SETTINGS, planners, (8,), tuple(range(seeds)), yardsticks)
        jobs = {job.path.name: job for job in comparison.jobs}
        for name, (success, tokens) in runs.items():
            path, config = jobs[name].path, jobs[name].config
            path.mkdir()
            (path / "config.json").write_text(config.to_json())
            rows = [
                {
                    "step": step,
                    "rollouts_total": step * config.budget,
                    "tokens_total": total,
                    "pool_success": value,
                    "held_out_success": value / 2,
                    "zero_variance_groups": 0.25 * step,
                }
                for step, (value, total) in enumerate(zip(success, tokens, strict=True))
            ]
            (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            seconds = [{"step": step, "seconds": tokens[step] - tokens[step - 1]} for step in (1, 2)]
            timing = "".join(json.dumps(row) + "\n" for row in seconds)
            (path / "timing.jsonl").write_text(timing if timed else timing.splitlines()[0] + "\n")
        found = lines(comparison, finished_runs(comparison.jobs), 8)
        return comparison, {line.entry.label: line for line in found}

    return compare


TWO_SEEDS = {
    "uniform-s0": ([0.1, 0.2, 0.3], [0, 100, 200]),
    "uniform-s1": ([0.1, 0.3, 0.5], [0, 100, 200]),
    "vip-s0": ([0.1, 0.3, 0.5], [0, 80, 160]),  # final tokens 160, where uniform is at 0.26
    "vip-s1": ([0.1, 0.5, 0.6], [0, 120, 240]),  # at 200 tokens: 0.5 + 0.1 * 80 / 120
}


def test_differences_by_hand(compared):
    vip = compared(TWO_SEEDS)[1]["vip"]
    rollouts, tokens = (vip.differences[cost]["pool_success"] for cost in ("rollouts", "tokens"))
    assert rollouts.estimate == Estimate(pytest.approx(0.15), pytest.approx(0.05), 2)  # .2 and .1
    assert (rollouts.at, rollouts.share) == (64, 1)
    first, second = 0.5 - 0.26, 0.5 + 0.1 * 80 / 120 - 0.5
    error = pytest.approx(abs(first - second) / 2)
    assert tokens.estimate == Estimate(pytest.approx((first + second) / 2), error, 2)
    assert (tokens.at, tokens.share) == (180, pytest.approx(0.9))
    assert vip.differences["rollouts"]["held_out_success"].estimate.mean == pytest.approx(0.075)
    assert vip.differences["seconds"]["pool_success"].estimate == tokens.estimate  # timed as one second a token
    assert vip.zero_variance == pytest.approx((0.25 + 0.5) / 2)
    assert (vip.rollouts, vip.tokens) == (64, 200)


def test_budget_to_uniforms_final_success_by_hand(compared):
    reach = compared(TWO_SEEDS)[1]["vip"].reach["pool_success"]
    assert reach.rollouts == pytest.approx(32)  # the mean curve .1 .4 .55, the target .4
    assert reach.standard_error == pytest.approx(0, abs=1e-9)  # seed 0 is at .3, seed 1 at .5 after 32 rollouts
    assert reach.share == pytest.approx(0.5)


def test_a_budget_that_is_not_reached_by_the_mean_or_by_a_seed(compared):
    runs = TWO_SEEDS | {"vip-s0": ([0.1, 0.2, 0.29], [0, 1, 2]), "vip-s1": ([0.1, 0.5, 0.7], [0, 1, 2])}
    reach = compared(runs)[1]["vip"].reach["pool_success"]
    assert reach.rollouts == pytest.approx(32 + 32 * (0.4 - 0.35) / (0.495 - 0.35))
    assert reach.standard_error is None


def test_never_reached_is_said(compared):
    runs = TWO_SEEDS | {"vip-s0": ([0.1, 0.2, 0.2], [0, 1, 2]), "vip-s1": ([0.1, 0.2, 0.3], [0, 1, 2])}
    comparison, found = compared(runs)
    assert found["vip"].reach["pool_success"] is None
    assert "not reached" in as_text(comparison, {8: list(found.values())})


def test_twice_the_budget_is_compared_at_the_end_and_half_way(compared):
    runs = {
        "uniform-s0": ([0.1, 0.2, 0.3], [0, 100, 200]),
        "uniform-b16-s0": ([0.1, 0.35, 0.6], [0, 200, 400]),
    }
    line = compared(runs, seeds=1, yardsticks=True)[1]["uniform, 2x budget"]
    for cost, difference, at in (("steps", 0.3, 2), ("rollouts", 0.05, 64), ("tokens", 0.05, 200)):
        found = line.differences[cost]["pool_success"]
        assert found.estimate == Estimate(pytest.approx(difference), None, 1)
        assert (found.at, found.share) == (at, 1)


def test_only_finished_pairs_count(compared):
    runs = TWO_SEEDS | {"uniform-s2": ([0.1, 0.2, 0.3], [0, 1, 2])}
    found = compared(runs, planners=("vip", "vip-moments"), seeds=3)[1]
    assert found["vip"].seeds == (0, 1)
    assert found["uniform"].seeds == (0, 1, 2)
    assert "vip-moments" not in found


def test_a_run_that_was_continued_from_fewer_steps_counts_as_one_in_one_go(compared, monkeypatch):
    monkeypatch.setattr(f"{__name__}.SETTINGS", SETTINGS.model_copy(update={"evaluate_every": 2}))
    vip = compared(TWO_SEEDS)[1]["vip"]  # evaluated after step 1 too, where they once ended
    assert vip.differences["tokens"]["pool_success"].estimate.mean == pytest.approx(
        ((0.5 - 0.26) + (0.1 + 0.5 / 1.2 - 0.5)) / 2
    )
    assert vip.reach["pool_success"].rollouts == pytest.approx(64 * (0.4 - 0.1) / (0.55 - 0.1))


def test_steps_without_timings_are_not_compared_by_time(compared):
    comparison, found = compared(TWO_SEEDS, timed=False)
    assert found["vip"].differences["seconds"]["pool_success"] is None
    assert found["vip"].differences["tokens"]["pool_success"] is not None
    assert "cannot be compared" in as_text(comparison, {8: list(found.values())})


def test_text_and_json_say_the_same(compared):
    comparison, found = compared(TWO_SEEDS)
    blocks = {8: list(found.values())}
    text, data = as_text(comparison, blocks), as_json(comparison, blocks)
    row = next(line for line in text.splitlines() if line.startswith("| vip "))
    assert "+0.1500 ± 0.0500 within noise" in row
    assert "@ 90.0%" in row
    assert "32 ± 0 (50%)" in row
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    (vip,) = [line for line in data["table"] if line["planner"] == "vip"]
    assert vip["differences"]["rollouts"]["pool_success"]["verdict"] == "within noise"
    assert "seconds" not in vip["differences"]


@pytest.mark.parametrize(
    ("estimate", "words"),
    [
        (Estimate(0.5, None, 1), "one pair"),
        (Estimate(0.0, 0.0, 3), "the same"),
        (Estimate(0.042, 0.01, 3), "within noise"),  # critical value 4.303
        (Estimate(0.044, 0.01, 3), "higher"),
        (Estimate(-0.044, 0.01, 3), "lower"),
        (Estimate(0.025, 0.01, 6), "within noise"),  # 2.571
        (Estimate(0.026, 0.01, 6), "higher"),
        (Estimate(-math.inf, 0.0, 2), "lower"),
    ],
)
def test_verdicts(estimate, words):
    assert verdict(estimate) == words
