"""TRL on the lab's task, paired by seed: ``python benchmarks/trl_learning.py OUT_DIR [--seeds 6] [--steps 200]``.

The lab's Hugging Face folder is trained by ``AllotmentGRPOTrainer`` (loss dr_grpo, rewards not scaled) with uniform
counts, with VIP, with the joint design, and with uniform counts at twice the budget; each arm at the learning rate that
is best for the pool on seeds of its own. Success is measured by sampling after training, on the pool and the held-out
prompts. Finished runs are not repeated. Prints a markdown table: means, and the paired difference to uniform (standard
error).
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from rich.progress import track

from allotment.report.summary import Estimate

ARMS = {
    "uniform": {"planner": "uniform", "num_generations": 8},
    "vip": {"planner": "vip", "num_generations": 8},
    "vip, no embeddings": {"planner": "vip", "num_generations": 8, "prompt_embeddings": None},
    "joint": {"planner": "joint", "num_generations": 8, "candidate_prompts": 128},
    "uniform, 2x budget": {"planner": "uniform", "num_generations": 16},
}
CHOOSING = (100, 101)
"""Seeds on which the rate of an arm is chosen."""
PROMPTS = 16
ROLLOUTS_OF_EVALUATION = 16


def run(out: Path, arm: str, rate: float, seed: int, steps: int) -> None:
    """One run; its result is a JSON file, written at the end."""
    if result(out, arm, rate, seed).exists():
        return
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback

    from allotment.integrations.trl import AllotmentGRPOConfig, AllotmentGRPOTrainer
    from allotment.lab.embeddings import prompt_embeddings
    from allotment.lab.hugging_face import SCRATCHPAD, model_folder, rows, scratchpad_reward, success_rate
    from allotment.tasks.mixture import load_mixture

    torch.set_num_threads(1)
    folder = result(out, arm, rate, seed).with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "embeddings.npy", prompt_embeddings([p.question for p in load_mixture().pool]))
    settings = {"prompt_embeddings": str(folder / "embeddings.npy"), **ARMS[arm]}
    if settings["planner"] == "uniform":
        settings["prompt_embeddings"] = None
    rollouts = PROMPTS * settings["num_generations"]
    tokenizer = AutoTokenizer.from_pretrained(model_folder())
    trainer = AllotmentGRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model_folder()),
        reward_funcs=scratchpad_reward,
        args=AllotmentGRPOConfig(
            output_dir=str(folder),
            seed=seed,
            max_steps=steps,
            per_device_train_batch_size=rollouts,
            learning_rate=rate,
            lr_scheduler_type="constant",
            loss_type="dr_grpo",
            scale_rewards="none",
            beta=0.0,
            max_completion_length=SCRATCHPAD.max_tokens,
            prompt_id_column="prompt_id",
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
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    model = trainer.model.eval()
    splits = {s: success_rate(model, tokenizer, rows(s), rollouts=ROLLOUTS_OF_EVALUATION) for s in ("pool", "held_out")}
    steps_logged = [row for row in trainer.state.log_history if "loss" in row]
    keys = ("step_time", "allotment/seconds", "allotment/dead_rollouts", "allotment/realised_variance_ratio")
    figures = {key: float(np.mean([row[key] for row in steps_logged if row.get(key) is not None])) for key in keys}
    totals = {key: sum(row[f"allotment/{key}"] for row in steps_logged) for key in ("budget", "tokens")}
    result(out, arm, rate, seed).write_text(json.dumps({**splits, **figures, **totals}))


def result(out: Path, arm: str, rate: float, seed: int) -> Path:
    """Where the result of a run lies."""
    return out / f"{arm.replace(', ', '-').replace(' ', '-')}-{rate:g}-s{seed}.json"


def read(out: Path, arm: str, rate: float, seeds: Iterable[int]) -> list[dict[str, float]]:
    """The results of an arm."""
    return [json.loads(result(out, arm, rate, seed).read_text()) for seed in seeds]


def best(out: Path, arm: str, rates: Sequence[float]) -> float:
    """The rate of highest pool success on the choosing seeds."""
    return max(rates, key=lambda rate: np.mean([row["pool"] for row in read(out, arm, rate, CHOOSING)]))


def table(out: Path, chosen: dict[str, float], seeds: Iterable[int]) -> str:
    """The results as markdown; the first arm is what the others are compared with."""
    found = {arm: read(out, arm, rate, seeds) for arm, rate in chosen.items()}
    reference = next(iter(found.values()))
    lines = ["| arm | rate | rollouts | tokens | dead rollouts | pool | to uniform | held out | to uniform |"]
    lines.append("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    for arm, runs in found.items():
        cells = []
        for split in ("pool", "held_out"):
            own = np.array([row[split] for row in runs])
            paired = Estimate.of(list(own - np.array([row[split] for row in reference])))
            difference = "" if runs is reference else f"{paired.mean:+.4f} ({paired.standard_error or np.nan:.4f})"
            cells += [f"{own.mean():.4f}", difference]
        budget, tokens = (np.mean([row[key] for row in runs]) for key in ("budget", "tokens"))
        dead = np.mean([row["allotment/dead_rollouts"] for row in runs])
        own_cells = f"{chosen[arm]:g} | {budget:,.0f} | {tokens:,.0f} | {dead:.3f}"
        lines.append(f"| {arm} | {own_cells} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--rates", nargs="+", type=float, default=[5e-5, 1e-4, 2e-4, 4e-4])
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    own = parser.parse_args()
    own.out.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(own.processes) as pool:
        tries = [(arm, rate, seed) for arm in own.arms for rate in own.rates for seed in CHOOSING]
        for job in track([pool.submit(run, own.out, *t, own.steps) for t in tries], description="Rates"):
            job.result()
        chosen = {arm: best(own.out, arm, own.rates) for arm in own.arms}
        runs = [(arm, rate, seed) for seed in range(own.seeds) for arm, rate in chosen.items()]
        for job in track([pool.submit(run, own.out, *r, own.steps) for r in runs], description="Runs"):
            job.result()
    print(table(own.out, chosen, range(own.seeds)))
    for arm in own.arms:
        means = {rate: np.mean([row["pool"] for row in read(own.out, arm, rate, CHOOSING)]) for rate in own.rates}
        print(
            f"{arm}, pool on the choosing seeds: " + ", ".join(f"{rate:g} {mean:.4f}" for rate, mean in means.items())
        )


if __name__ == "__main__":
    main()
