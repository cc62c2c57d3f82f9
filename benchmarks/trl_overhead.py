"""What planning costs a step of TRL: ``python benchmarks/trl_overhead.py [--steps 40]``, alone on the machine.

    python benchmarks/trl_overhead.py --prompts 512 --steps 9 --arms "vip, embeddings" --processor-time

The lab's Hugging Face folder, 8 rollouts for each of 16 prompts a step, one thread; the smallest model there is, so the
largest share. Medians over the steps after the first five, in milliseconds: of the whole step, and of what the adapter
spends on planning, advantages and score sketches; the latter in processor time where the machine is not idle.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
from trl import GRPOConfig, GRPOTrainer

import allotment.integrations.trl.trainer as trainer_module
from allotment.integrations.trl import AllotmentGRPOConfig, AllotmentGRPOTrainer
from allotment.lab.embeddings import prompt_embeddings
from allotment.lab.hugging_face import SCRATCHPAD, model_folder, rows, scratchpad_reward
from allotment.tasks.mixture import load_mixture

ARMS: dict[str, dict[str, Any]] = {
    "stock GRPOTrainer": {},
    "uniform": {"planner": "uniform"},
    "vip": {"planner": "vip"},
    "vip, embeddings": {"planner": "vip", "prompt_embeddings": "embeddings.npy"},
    "vip-moments, last-layer": {"planner": "vip-moments", "score_sketch": "last-layer"},
    "vip-moments, last-block": {"planner": "vip-moments", "score_sketch": "last-block"},
}


def run(arm: str, steps: int, folder: Path, prompts: int = 16) -> tuple[float, float]:
    """Median milliseconds of a step, and of the adapter's part of it."""
    settings = dict(ARMS[arm])
    if "prompt_embeddings" in settings:
        settings["prompt_embeddings"] = str(folder / "embeddings.npy")
    trainer, config = (AllotmentGRPOTrainer, AllotmentGRPOConfig) if settings else (GRPOTrainer, GRPOConfig)
    made = trainer(
        model=AutoModelForCausalLM.from_pretrained(model_folder()),
        reward_funcs=scratchpad_reward,
        args=config(
            output_dir=str(folder / arm.replace(" ", "-")),
            max_steps=steps,
            per_device_train_batch_size=8 * prompts,
            num_generations=8,
            max_completion_length=SCRATCHPAD.max_tokens,
            loss_type="dr_grpo",
            scale_rewards="none",
            learning_rate=1e-4,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
            **settings,
        ),
        train_dataset=Dataset.from_list(rows("pool")),
        processing_class=AutoTokenizer.from_pretrained(model_folder()),
    )
    made.remove_callback(PrinterCallback)
    made.train()
    logged = [row for row in made.state.log_history if "loss" in row][5:]
    own = [row.get("allotment/seconds", 0.0) for row in logged]
    return 1e3 * float(np.median([row["step_time"] for row in logged])), 1e3 * float(np.median(own))


def main() -> None:
    """Print a markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--processor-time", action="store_true", help="of the adapter, in place of time on the wall")
    options = parser.parse_args()
    if options.processor_time:
        trainer_module.time = SimpleNamespace(perf_counter=time.process_time)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "embeddings.npy", prompt_embeddings([p.question for p in load_mixture().pool]))
        run("uniform", 6, Path(folder))  # warms up
        print("| arm | step (ms) | adapter (ms) | share |\n|---|--:|--:|--:|")
        for arm in options.arms:
            step, own = run(arm, options.steps, Path(folder), options.prompts)
            print(f"| {arm} | {step:.0f} | {own:.1f} | {own / step:.1%} |")


if __name__ == "__main__":
    main()
