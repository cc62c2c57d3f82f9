"""verl's own ``main_ppo``: hydra, its checks and task runner, real Ray, TransferQueue, agent-loop and reward-loop
workers, buffer, advantages and checkpoints; the lab's policy, mini-batch by mini-batch, in place of its engines. Each
run is a process of its own, of one to two minutes."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from lab_verl import MEAN, PROMPTS

from allotment.audit.figures import unbiased_variance

FEW = "data.train_max_samples=48"
"""Three steps an epoch, so that prompts come back."""


def run(out: Path, *arguments: str) -> subprocess.CompletedProcess:
    """No environment variable names Allotment: verl finds it by its entry point."""
    command = [sys.executable, str(Path(__file__).with_name("lab_verl.py")), str(out), FEW, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200, check=False)


def finished(out: Path, *arguments: str) -> Path:
    done = run(out, *arguments)
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
        assert step["passes"] == [PROMPTS * MEAN // 2] * 2
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
        "trainer.v1.trainer_mode=lab_sync",
        "algorithm.adv_estimator=allotment_dr_grpo",
        f"{manager}AllotmentAgentLoopManager",
        "++trainer.checkpoint_callback_class=allotment.integrations.verl.AllotmentCheckpoint",
        "trainer.save_freq=2",
    )
    out = finished(tmp_path, "--steps", "4", *paths)
    assert_sound(out, 4)
    finished(out, "--steps", "6", *paths)
    assert_sound(out, 6)


def test_a_stock_estimator_through_the_hook(tmp_path) -> None:
    """verl's grpo, divided by the standard deviation of each group, on ragged groups; each prompt weighs the same."""
    out = finished(tmp_path, "--steps", "5", "algorithm.adv_estimator=grpo")
    assert_sound(out, 5)
    step = lines(out / "steps.jsonl")[-1]
    assert len({len(rows) for rows in groups(step).values()}) > 1
    for rows in groups(step).values():
        rewards = [step["rewards"][row] for row in rows]
        variance = unbiased_variance(np.array([sum(rewards)]), np.array([len(rewards)]))[0]
        for row in rows:
            by_hand = (step["rewards"][row] - sum(rewards) / len(rewards)) / (variance**0.5 + 1e-6)
            assert step["advantages"][row] == pytest.approx(by_hand * MEAN / len(rows), abs=1e-4)


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
    assert [step["passes"] for step in steps.values() if step["step"] != 4] == [[64, 64]] * 5
    assert len(steps[4]["passes"]) == 2
    assert sum(steps[4]["passes"]) == sum(came)


def test_a_worker_that_is_dead_at_dispatch_and_refilled_prompts(tmp_path) -> None:
    """The others take its share; where groups fail and are refilled, no step has fewer rollouts."""
    refill = "trainer.v1.sampler.sync_refill_failed_groups=true"
    three = "actor_rollout_ref.rollout.agent.num_workers=3"
    out = finished(tmp_path / "dispatch", "--steps", "6", refill, three, "lab.kill=idle", "lab.kill_at=3")
    assert_sound(out, 6)
    out = finished(tmp_path / "refill", "--steps", "6", refill, "lab.kill=agent", "lab.kill_at=4")
    assert_sound(out, 6)


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


ASK = """
import sys, time, ray
for _ in range(60):
    try:
        ray.init(sys.argv[1], log_to_driver=False)
        break
    except Exception:
        time.sleep(1)

@ray.remote
def mode():
    from verl.trainer.ppo.v1 import get_trainer_cls
    return get_trainer_cls("allotment_sync").verl_mode

print(ray.get(mode.remote()))
"""


def test_a_cluster_that_runs_already_knows_the_trainers() -> None:
    """``ray start``: its processes have nothing of the environment of the run."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VERL_USE")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}  # of this cluster alone
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        start = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--port", port]
        start += [
            "--node-ip-address=127.0.0.1",
            "--num-cpus=2",
            "--include-dashboard=false",
            "--disable-usage-stats",
            "--temp-dir",
            folder,
        ]
        cluster = subprocess.Popen(start, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            ask = [sys.executable, "-c", ASK, f"127.0.0.1:{port}"]
            done = subprocess.run(ask, env=environment, capture_output=True, text=True, timeout=600, check=False)
        finally:
            cluster.terminate()
            cluster.wait()
    assert done.stdout.split()[-1:] == ["sync"], done.stderr[-2000:]


TAIL = "lab.tail=0.3"
MODES = {
    "colocate_async": ["trainer.v1.colocate_async.num_warmup_batches=1.5"],
    "separate_async": [
        "actor_rollout_ref.actor.ppo_mini_batch_size=4",
        "trainer.v1.separate_async.parameter_sync_step=4",
        "actor_rollout_ref.hybrid_engine=false",
        "actor_rollout_ref.rollout.nnodes=1",
        "actor_rollout_ref.rollout.n_gpus_per_node=1",
        "actor_rollout_ref.rollout.checkpoint_engine.backend=nccl",
    ],
}


@pytest.mark.parametrize("mode", list(MODES))
def test_asynchronous_training_makes_the_configured_passes(mode, tmp_path) -> None:
    """Response times of a long tail; resumed in the middle, with prompts in flight."""
    own = (f"trainer.v1.trainer_mode=lab_allotment_{mode}", *MODES[mode], TAIL, "trainer.save_freq=5")
    out = finished(tmp_path, "--steps", "5", *own)
    logged = metrics(out)  # verl's file logger begins its file anew
    finished(out, "--steps", "10", *own)
    logged |= metrics(out)
    updates, syncs = lines(out / "steps.jsonl"), 4 if mode == "separate_async" else 1
    assert [update["step"] for update in updates] == [step for step in range(1, 11) for _ in range(syncs)]
    seen = set()
    for update in updates:
        rows = groups(update)
        assert len(rows) == PROMPTS // syncs
        assert not seen & set(rows)
        seen |= set(rows)
        assert all(abs(sum(update["advantages"][row] for row in of_prompt)) < 1e-6 for of_prompt in rows.values())
        real = sum(map(len, rows.values()))
        assert len(update["passes"]) == (2 if mode == "colocate_async" else 1)
        assert sum(update["passes"]) == real
        assert sum(update["padding"]) < 4
    for step in range(1, 11):
        own = [update for update in updates if update["step"] == step]
        assert logged[step]["allotment/rollouts"] == sum(sum(update["passes"]) for update in own)
        assert logged[step]["allotment/optimizer_steps"] == sum(len(update["passes"]) for update in own)
        assert logged[step]["allotment/padding_share"] < 0.1
    rollouts = sum(sum(update["passes"]) for update in updates)
    assert abs(rollouts - 10 * PROMPTS * MEAN) < 2 * PROMPTS * MEAN
