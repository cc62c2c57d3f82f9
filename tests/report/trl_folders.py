"""Folders of tiny TRL runs, as a Python script leaves them."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("trl")
sys.path.append(str(Path(__file__).parents[1] / "integrations"))

import trl_cases

SAVED = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6, "prompt_id_column": "name", "scale_rewards": "none"}
EVALUATED = {"eval_strategy": "steps", "eval_steps": 3, "num_generations_eval": 1}
STATE = "trainer_state.json"


def trained(folder, *, kind="grpo", evaluated=True, **settings):
    """The folder after a run of six steps with a checkpoint every two, and the trainer."""
    about = {"of": {"eval_dataset": trl_cases.dataset(4)}, **EVALUATED} if evaluated else {}
    trainer = trl_cases.train(*trl_cases.OURS[kind], folder, **{**SAVED, **about, **settings})
    return Path(folder), trainer


def cut(file, share=0.5):
    """A file that was cut short."""
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
