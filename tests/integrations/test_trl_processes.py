"""Two processes, started by torchrun: they agree, and groups reach over both."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from trl_cases import OURS, expected_advantages, groups_of
from trl_two_processes import ADAPTIVE, SETTINGS


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """(the folder, what each process saw, what torchrun said)."""
    folder = tmp_path_factory.mktemp("two")
    script = Path(__file__).with_name("trl_two_processes.py")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*torchrun, str(script), str(folder)], capture_output=True, text=True, timeout=300)
    reports = [folder / f"rank{rank}.json" for rank in (0, 1)]
    assert all(report.exists() for report in reports), done.stderr[-4000:]
    return folder, [json.loads(report.read_text()) for report in reports], done


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("kind", OURS)
def test_equal_counts_are_trls(kind, name, launched):
    for rank in launched[1]:
        runs = rank["uniform"][f"{kind} {name}"]
        assert runs["ours"] == runs["stock"]
        assert any(row.get("grad_norm", 0) > 0 for row in runs["stock"])


@pytest.mark.parametrize("name", ADAPTIVE)
def test_groups_reach_over_both_processes(name, launched):
    folder, ranks, _ = launched
    first, second = (rank["adaptive"][name]["batches"] for rank in ranks)
    lines = [json.loads(line) for line in (folder / name / "rollouts.jsonl").read_text().splitlines()]
    assert len(first) == len(second) == 6
    straddle = ragged = False
    for step, (one, two) in enumerate(zip(first, second, strict=True), 1):
        assert len(one["prompts"]) == len(two["prompts"]) == 6
        assert repr(one["rewards"]) == repr(two["rewards"])
        prompts = one["prompts"] + two["prompts"]
        for row, prompt in zip(one["inputs"] + two["inputs"], prompts, strict=True):
            assert row["prompt"] == prompt
            assert row["answer"] == prompt.partition("+")[0]
        groups = groups_of(prompts)
        assert min(map(len, groups.values())) >= 3
        scored = [sum(not math.isnan(one["rewards"][i][0]) for i in members) for members in groups.values()]
        assert [line["n"] for line in lines if line["step"] == step] == [n for n in scored if n]
        rewards = [reward for (reward,) in one["rewards"]]
        expected = expected_advantages(rewards, prompts, kind="rloo" if name == "rloo" else "grpo")
        assert one["advantages"] + two["advantages"] == pytest.approx(expected, abs=2e-5)
        straddle |= any(min(members) < 6 <= max(members) for members in groups.values())
        ragged |= len(set(map(len, groups.values()))) > 1
    assert straddle
    assert ragged


def test_an_error_of_the_planner_ends_both_processes(launched):
    messages = {rank["error"] for rank in launched[1]}
    assert messages == {"InfeasibleBudgetError: no split of 12 over 3 prompts"}


def test_a_first_batch_without_rewards_ends_both_processes(launched):
    assert launched[2].returncode != 0
    assert "no rollout of the first batch has a reward" in launched[2].stderr
