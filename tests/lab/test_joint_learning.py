"""How the benchmark of designs chooses each arm's rate: on seeds of its own, never at an edge."""

from itertools import islice
from pathlib import Path

import pytest

from allotment.lab.config import TrainConfig
from joint_learning import ARMS, Job, Options, best, make, reached, table, tried, wanted

OPTIONS = Options(Path("none"), arms=("uniform", "joint"), rates=(1e-4, 2e-4, 4e-4, 8e-4), seeds=(0, 1))


def row(job, peak):
    """Success .5 at the peak, less for rates that are further away."""
    end = 0.5 - abs(job.rate - peak) + 1e-6 * job.seed
    curve = [{"held_out": 0.4, "rollouts": 0}, {"held_out": end, "rollouts": 1000, "tokens": 5000, "seconds": 2.0}]
    return {"case": "one-pass", "optimizer": "adamw", **job._asdict(), "curve": curve}


def filled(peaks):
    """All runs, in the order in which the benchmark makes them."""
    rows, order = {}, []
    while (job := next((j for j in wanted(OPTIONS, rows) if j not in rows), None)) is not None:
        rows[job] = row(job, peaks[job.arm])
        order.append(job)
    return rows, order


def test_the_rate_is_chosen_on_other_seeds_than_those_reported():
    rows, order = filled({"uniform": 2e-4, "joint": 4e-4})
    assert len(rows) == len(order) == 2 * (4 * 2 + 2)
    assert (best(OPTIONS, rows, "uniform"), best(OPTIONS, rows, "joint")) == (2e-4, 4e-4)
    reported = {(job.arm, job.rate) for job in order if job.seed in OPTIONS.seeds}
    assert reported == {("uniform", 2e-4), ("joint", 4e-4)}
    assert order[:8] == [Job("uniform", rate, seed) for rate in OPTIONS.rates for seed in OPTIONS.choosing]


@pytest.mark.parametrize(("peak", "rates"), [(1e-5, 8), (3.2e-3, 7), (1e-4, 5)])
def test_a_best_rate_at_the_edge_asks_for_one_more(peak, rates):
    rows, _ = filled({"uniform": peak, "joint": 2e-4})
    found = tried(OPTIONS, rows, "uniform")
    at = found.index(best(OPTIONS, rows, "uniform"))
    assert len(found) == rates
    assert 0 < at < len(found) - 1


def test_the_runs_of_another_arm_go_on_while_a_choice_is_open():
    """Nothing of an arm is reported before all of its tries are there."""
    tries = list(islice(wanted(OPTIONS, {}), 16))
    assert {job.arm for job in tries[8:]} == {"joint"}
    assert not {job.seed for job in wanted(OPTIONS, {})} & set(OPTIONS.seeds)


def test_the_table_pairs_by_seed():
    rows, _ = filled({"uniform": 2e-4, "joint": 4e-4})
    for seed in OPTIONS.seeds:
        rows[Job("joint", 4e-4, seed)]["curve"][-1]["held_out"] += 0.01
    text = table(OPTIONS, rows)
    assert "| uniform | 0.0002 | 2 | 0.5000 (0.0000) |  |" in text
    assert "| joint | 0.0004 | 2 | 0.5100 (0.0000) | +0.0100 (0.0000) | 0.91 | 1,000 | 5,000 | 2 |" in text


def test_the_share_of_rollouts_is_where_the_mean_curve_crosses():
    slow = [{"x": 0.4, "rollouts": 0}, {"x": 0.45, "rollouts": 500}, {"x": 0.5, "rollouts": 1000}]
    fast = [{"x": 0.4, "rollouts": 0}, {"x": 0.55, "rollouts": 500}, {"x": 0.6, "rollouts": 1000}]
    assert reached([(fast, slow)], "x") == pytest.approx(1 / 3)
    assert reached([(slow, fast)], "x") == float("inf")


def test_what_is_there_is_not_made_again(tmp_path):
    rows, _ = filled({"uniform": 2e-4, "joint": 4e-4})
    make(Options(tmp_path / "out.jsonl", arms=OPTIONS.arms, rates=OPTIONS.rates, seeds=OPTIONS.seeds), rows)
    assert not (tmp_path / "out.jsonl").exists()


def test_every_arm_is_a_run_of_128_rollouts_or_of_twice_as_many():
    budgets = {name: TrainConfig(**settings).budget for name, settings in ARMS.items()}
    assert {name for name, budget in budgets.items() if budget == 256} == {"uniform-32x8", "uniform-16x16"}
    assert set(budgets.values()) == {128, 256}
