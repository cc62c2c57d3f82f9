"""Every figure that a run writes is in the glossary."""

import json
import re
from pathlib import Path

import pytest

from allotment.cli.main import main
from allotment.lab.hugging_face import model_folder, rows

GLOSSARY = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text()
SMALL = ["--prompts-per-step", "2", "--rollouts-per-prompt", "4", "--steps", "2", "--evaluate-every", "2"]
OBJECTIVE = ["--prompts-per-step", "4", "--regime", "short", "--updates", "2", "--objective"]
LAB = {
    "lab": [],
    "lab, token budget": ["--planner", "vip-tokens", "--rollouts-per-prompt", "8"],
    "lab, rewards and gates": [
        *(*OBJECTIVE, "gdpo", "divergence-ppo", "jackpot", "capo", "--rewards", "correctness", "format", "length"),
        "--objective-settings",
        '{"divergence-ppo": {"anchor": "old"}, "jackpot": {"normaliser": "exact"}}',
        *("--actor", "quantised", "--select", "pods"),
    ],
    "lab, flowrl": [*OBJECTIVE, "flowrl"],
    "lab, preferences": [*OBJECTIVE, "on-policy-dpo", "--actor", "rounds"],
    "lab, representation-based reward": [
        *(*OBJECTIVE, "representation-reward", "--objective-settings"),
        '{"representation-reward": {"co_loss": true, "prompts": 100, "rollouts": 4, "epochs": 2}}',
    ],
    "lab, inverse reinforcement learning": [*OBJECTIVE, "ml-irl"],
    "lab, small actor": [
        *(*OBJECTIVE, "jackpot", "--objective-settings", '{"jackpot": {"normaliser": "top_k"}}', "--actor", "small")
    ],
}


@pytest.mark.parametrize("trainer", [*LAB, "trl"])
def test_every_figure_is_explained(trainer, tmp_path):
    words = ["train", "trl" if trainer == "trl" else "lab", *SMALL, "--out", str(tmp_path / "run")]
    if trainer == "trl":
        data = tmp_path / "rows.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows("pool")[:8]))
        words += ["--model", str(model_folder()), "--dataset", str(data), "--held-out", "2"]
        words += ["--max-completion-tokens", "8"]
    else:
        words += LAB[trainer]
    assert main(words) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    explained = set(re.findall(r"`(\w+)`", "\n".join(re.findall(r"^\| `.*?\|", GLOSSARY, flags=re.MULTILINE))))
    assert {name for line in lines for name in line} <= explained
