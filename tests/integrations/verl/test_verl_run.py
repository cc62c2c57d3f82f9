"""Real Ray, TransferQueue, agent-loop and reward-loop workers, buffer, advantages and checkpoints of verl; the lab's
policy in place of its engines. Each run is a process of its own, of one to two minutes."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from lab_verl import MEAN, PROMPTS

from allotment.audit.figures import unbiased_variance

HOOK = {"VERL_USE_EXTERNAL_MODULES": "allotment.integrations.verl"}
FEW = "data.train_max_samples=48"
"""Three steps an epoch, so that prompts come back."""


def run(out: Path, *arguments: str, hook: bool = True) -> subprocess.CompletedProcess:
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("lab_verl.py")), str(out), FEW, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(HOOK if hook else {})}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200, check=False)


def finished(out: Path, *arguments: str, hook: bool = True) -> Path:
    done = run(out, *arguments, hook=hook)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def groups(step: dict) -> dict[str, list[int]]:
    """Rows of each uid of a step, padding apart."""
    rows = defaultdict(list)
    for row, (key, is_padding) in enumerate(zip(step["keys"], step["padding"], strict=True)):
        if not is_padding:
            rows[key.rsplit("_", 2)[0]].append(row)
    return rows


def counts(out: Path, step: int) -> dict[str, int]:
    return {row["prompt_id"]: row["n"] for row in lines(out / "rollouts.jsonl") if row["step"] == step}


def metrics(out: Path) -> dict[int, dict]:
    return {row["step"]: row["data"] for row in lines(out / "metrics.jsonl")}


def assert_sound(out: Path, steps: int, prompts: int = PROMPTS) -> None:
    """Every step: the budget to the rollout, nothing padded, whole groups, advantages that sum to 0, all in the log."""
    logged = lines(out / "rollouts.jsonl")
    assert [s["step"] for s in lines(out / "steps.jsonl")] == list(range(1, steps + 1))
    for step in lines(out / "steps.jsonl"):
        rows = groups(step)
        own = [row for row in logged if row["step"] == step["step"]]
        assert not any(step["padding"])
        assert len(step["keys"]) == PROMPTS * MEAN == sum(row["n"] for row in own)
        assert Counter(map(len, rows.values())) == Counter(row["n"] for row in own)
        assert sum(row["successes"] for row in own) == sum(step["rewards"])
        assert len(rows) == prompts
        for of_prompt in rows.values():
            assert len(of_prompt) >= 2
            assert abs(sum(step["advantages"][row] for row in of_prompt)) < 1e-6


@pytest.fixture(scope="module")
def twenty(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("twenty")
    return finished(
        out, "--steps", "20", "trainer.save_freq=10", "trainer.test_freq=10", "trainer.val_before_train=true"
    )


def test_twenty_steps_of_vip_are_exact(twenty) -> None:
    assert_sound(twenty, 20)


def test_counts_follow_what_came_back(twenty) -> None:
    told, spread = {}, []
    for row in lines(twenty / "rollouts.jsonl"):
        told.setdefault(row["prompt_id"], []).append(row)
    for visits in told.values():
        for before, after in pairwise(visits):
            moved = after["predicted_mean"] - before["predicted_mean"]
            surprise = before["successes"] / before["n"] - before["predicted_mean"]
            spread.append((moved > 0) == (surprise > 0))
    assert len(spread) > 200
    assert sum(spread) / len(spread) > 0.75  # not all: other prompts and the level move it too
    last = [row for row in lines(twenty / "rollouts.jsonl") if row["step"] > 10]
    even = [row["n"] for row in last if 0.3 < row["predicted_mean"] < 0.7]
    sure = [row["n"] for row in last if not 0.05 < row["predicted_mean"] < 0.95]
    assert sum(even) / len(even) > 1.5 * sum(sure) / len(sure)


def test_figures_are_in_verls_tracking(twenty) -> None:
    for step, figures in metrics(twenty).items():
        if step:
            own = counts(twenty, step)
            assert figures["allotment/budget"] == PROMPTS * MEAN
            assert figures["allotment/min_count"] == min(own.values())
            assert figures["allotment/max_count"] == max(own.values())
            assert figures["allotment/seconds"] < 1


def test_validation_is_left_alone(twenty) -> None:
    """One rollout of each held-out prompt, none of them in the log."""
    assert [s for s, m in metrics(twenty).items() if "val-core/lab/acc/mean@1" in m] == [0, 10, 20]
    pool = {row["prompt_id"] for row in lines(twenty / "rollouts.jsonl")}
    assert len(pool) == 48


def test_a_resumed_run_gives_the_same_plan(twenty, tmp_path) -> None:
    out = tmp_path / "resumed"
    shutil.copytree(twenty, out)
    shutil.rmtree(out / "global_step_20")
    (out / "latest_checkpointed_iteration.txt").write_text("10")
    (out / "steps.jsonl").unlink()
    finished(out, "--steps", "12")
    assert [s["step"] for s in lines(out / "steps.jsonl")] == [11, 12]
    assert counts(out, 11) == counts(twenty, 11)
    assert len(set(counts(out, 11).values())) > 3
    assert sorted({row["step"] for row in lines(out / "rollouts.jsonl")}) == list(range(1, 13))
    before = [row for row in lines(twenty / "rollouts.jsonl") if row["step"] <= 10]
    assert [row for row in lines(out / "rollouts.jsonl") if row["step"] <= 10] == before


def test_prompts_without_rollouts_and_prompts_with_many(tmp_path) -> None:
    """6 of 16 prompts are trained on: 10 counts of 0, the others 21 on the average."""
    out = finished(tmp_path, "--steps", "4", "+allotment.trained_prompts=6", "+allotment.planner_kwargs.bounds=[2,40]")
    assert_sound(out, 4, prompts=6)
    assert all(figures["allotment/zero_count"] == PROMPTS - 6 for figures in metrics(out).values())
    assert max(row["n"] for row in lines(out / "rollouts.jsonl")) > 2 * MEAN


def test_without_the_hook_by_import_paths_alone(tmp_path) -> None:
    """Manager, estimator and checkpoint callback named in the configuration; then resumed."""
    manager = "+actor_rollout_ref.rollout.agent.agent_loop_manager_class=allotment.integrations.verl."
    paths = (
        "trainer.v1.trainer_mode=sync",
        "algorithm.adv_estimator=allotment_dr_grpo",
        f"{manager}AllotmentAgentLoopManager",
        "++trainer.checkpoint_callback_class=allotment.integrations.verl.AllotmentCheckpoint",
        "trainer.save_freq=2",
    )
    out = finished(tmp_path, "--steps", "4", *paths, hook=False)
    assert_sound(out, 4)
    finished(out, "--steps", "6", *paths, hook=False)
    assert_sound(out, 6)


def test_a_stock_estimator_through_the_hook(tmp_path) -> None:
    """verl's grpo, divided by the standard deviation of each group, on ragged groups."""
    out = finished(tmp_path, "--steps", "5", "algorithm.adv_estimator=grpo")
    assert_sound(out, 5)
    step = lines(out / "steps.jsonl")[-1]
    assert len({len(rows) for rows in groups(step).values()}) > 1
    for rows in groups(step).values():
        rewards = [step["rewards"][row] for row in rows]
        variance = unbiased_variance(np.array([sum(rewards)]), np.array([len(rewards)]))[0]
        for row in rows:
            by_hand = (step["rewards"][row] - sum(rewards) / len(rewards)) / (variance**0.5 + 1e-6)
            assert step["advantages"][row] == pytest.approx(by_hand, abs=1e-4)


def test_a_selection_is_trained_on(tmp_path) -> None:
    """PODS keeps 2 of 8: the others have advantage 0, and the two count as the whole group."""
    out = finished(tmp_path, "--steps", "3", "+allotment.planner=uniform", "+allotment.select=pods")
    assert_sound(out, 3)
    for step in lines(out / "steps.jsonl"):
        for rows in groups(step).values():
            rewards = [step["rewards"][row] for row in rows]
            found = sorted(step["advantages"][row] for row in rows)
            mixed = len(set(rewards)) > 1
            assert found == pytest.approx([-MEAN / 2, *[0.0] * 6, MEAN / 2] if mixed else [0.0] * 8, abs=1e-6)


def test_a_killed_agent_loop_worker(tmp_path) -> None:
    """Its prompts fail, the step goes on with the others, as verl does after a failure; the planner hears of those."""
    out = finished(tmp_path, "--steps", "6", "lab.kill=agent", "lab.kill_at=4")
    steps = {step["step"]: step for step in lines(out / "steps.jsonl")}
    came = [len(rows) for rows in groups(steps[4]).values()]
    assert len(came) == PROMPTS // 2
    assert abs(sum(came) - PROMPTS * MEAN / 2) <= max(came) / 2  # both workers had half of the rollouts
    assert Counter(counts(out, 4).values()) == Counter(came)
    for step in (5, 6):
        assert len(steps[step]["keys"]) == PROMPTS * MEAN == sum(counts(out, step).values())
        assert not any(steps[step]["padding"])


def test_a_killed_reward_worker(tmp_path) -> None:
    """The only one: verl stops with an error of its own. The run is then resumed, the planner with it."""
    done = run(tmp_path, "--steps", "6", "trainer.save_freq=3", "lab.kill=reward", "lab.kill_at=4")
    assert done.returncode != 0
    assert "no materializable trajectories" in done.stderr
    learnt = lines(tmp_path / "rollouts.jsonl")
    assert {row["step"] for row in learnt} == {1, 2, 3}
    finished(tmp_path, "--steps", "6")
    assert_sound(tmp_path, 6)
    assert lines(tmp_path / "rollouts.jsonl")[: len(learnt)] == learnt


def test_asynchronous_training_spends_the_budget_over_all_prompts(tmp_path) -> None:
    """Batches mix requests there: what is exact is the sum over whole blocks of prompts, in the order of request."""
    mode = ("trainer.v1.trainer_mode=allotment_colocate_async", "trainer.v1.colocate_async.num_warmup_batches=1.5")
    out = finished(tmp_path, "--steps", "6", "trainer.save_freq=3", *mode)
    finished(out, "--steps", "9", *mode)
    steps = lines(out / "steps.jsonl")
    assert [step["step"] for step in steps] == list(range(1, 10))
    seen = set()
    for step in steps:
        rows = groups(step)
        assert len(rows) == PROMPTS
        assert not seen & set(rows)
        seen |= set(rows)
        assert all(abs(sum(step["advantages"][row] for row in of_prompt)) < 1e-6 for of_prompt in rows.values())
    whole = [step for step in steps if sum(map(len, groups(step).values())) == PROMPTS * MEAN]
    assert whole  # how often a complete block is there in time depends on the machine: 3 of 9 steps on a busy one
    assert not any(any(step["padding"]) for step in whole)
    rollouts = sum(len(rows) for step in steps for rows in groups(step).values())
    assert abs(rollouts - 9 * PROMPTS * MEAN) < 2 * PROMPTS * MEAN
    logged = Counter(row["n"] for row in lines(out / "rollouts.jsonl"))
    assert sum(n * times for n, times in logged.items()) <= rollouts
