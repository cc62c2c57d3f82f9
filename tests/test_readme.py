"""The code in the README runs as it stands, and the page is short."""

import re
from pathlib import Path

import numpy as np

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_planner_loop(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    budgets = []

    def generate_and_verify(plan):
        budgets.append(plan.budget)
        order = random.permutation(plan.budget)
        group_ids = np.array(plan.group_ids())[order]
        return (random.random(plan.budget) < group_ids / 1024).astype(float), group_ids

    names = {
        "batches": [range(512), range(512, 1024), range(512)],
        "generate_and_verify": generate_and_verify,
        "embeddings": random.normal(size=(1024, 8)),
        "all_prompt_ids": range(1024),
    }
    exec(BLOCKS[0], names)
    assert budgets == [4096] * 3
    assert names["plan"].counts.min() < 8 < names["plan"].counts.max()
    assert (tmp_path / "planner.safetensors").exists()


def test_the_trl_trainer(tmp_path, monkeypatch):
    from datasets import Dataset

    from allotment.lab.hugging_face import model_folder, rows, scratchpad_reward

    monkeypatch.chdir(tmp_path)
    names = {"model": str(model_folder()), "reward": scratchpad_reward, "dataset": Dataset.from_list(rows("pool")[:1])}
    exec(BLOCKS[1].replace("planner=", "use_cpu=True, bf16=False, planner="), names)  # it stands for a GPU
    assert names["trainer"].state.global_step == 3  # epochs of one prompt
    assert (tmp_path / "runs" / "trl" / "rollouts.jsonl").exists()


def test_the_page_is_short():
    assert len(README.split()) <= 700
