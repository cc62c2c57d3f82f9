"""On-policy DPO in TRL, paired by seed: ``python benchmarks/trl_preferences.py OUT_DIR [--seeds 0 1 2 3] [--beta 1]``.

The lab's Hugging Face folder is trained by ``AllotmentDPOTrainer`` in rounds of 16 prompts with 8 rollouts in the mean,
two updates on 64 pairs each; the same with VIP; ``offline``, the same but that the initial policy draws in each round;
``offline at once``, one round of as many rollouts of the initial policy over the whole pool and as many updates; and by
``AllotmentGRPOTrainer`` with uniform counts, an update for each round. beta is each arm's own, or ``--beta`` for all.
Success is measured by sampling after training, on the pool and the held-out prompts. Each run has a process of its own,
one at a time, and leaves a JSON file; finished runs are not repeated. Prints a markdown table: means, and paired
differences to on-policy DPO with uniform counts (standard error).
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from allotment.report.summary import Estimate

ARMS = {
    "on-policy, uniform": 0.1,
    "on-policy, vip": 0.1,
    "offline, uniform": 1.0,
    "offline at once, uniform": 1.0,
    "grpo, uniform": 0.0,
}
"""With beta, the best of .1, .3, 1 and 3 on another seed."""
FIRST = "on-policy, uniform"
PROMPTS, ROLLOUTS, PAIRS, UPDATES = 16, 8, 64, 2
OFFLINE_PROMPTS = 768
"""Of the pool's 774; a divisor of the rollouts of the whole run."""
ROLLOUTS_OF_EVALUATION = 16
COMMON: dict[str, Any] = {
    "lr_scheduler_type": "constant",
    "prompt_id_column": "prompt_id",
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}


def run(out: Path, arm: str, seed: int, rounds: int, learning_rate: float, beta: float) -> None:
    """One run; its result is a JSON file, written at the end."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback

    from allotment.lab.embeddings import prompt_embeddings
    from allotment.lab.hugging_face import SCRATCHPAD, model_folder, rows, success_rate
    from allotment.tasks.mixture import load_mixture

    torch.set_num_threads(1)
    method, planner = arm.split(", ")
    common = COMMON | {"output_dir": str(out), "seed": seed, "planner": planner, "learning_rate": learning_rate}
    common |= {"num_generations": ROLLOUTS, "max_completion_length": SCRATCHPAD.max_tokens}
    if planner == "vip":
        file = out / "embeddings.npy"
        np.save(file, prompt_embeddings([p.question for p in load_mixture().pool]))
        common["prompt_embeddings"] = str(file)
    make = grpo if method == "grpo" else preferences
    tokenizer = AutoTokenizer.from_pretrained(model_folder())
    model = AutoModelForCausalLM.from_pretrained(model_folder())
    trainer = make(common, rounds, method, beta, model=model, processing_class=tokenizer)
    trainer.remove_callback(PrinterCallback)
    started = time.process_time()
    trainer.train()
    cpu = time.process_time() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    model.eval()
    splits = {s: success_rate(model, tokenizer, rows(s), rollouts=ROLLOUTS_OF_EVALUATION) for s in ("pool", "held_out")}
    logged = [row for row in trainer.state.log_history if "loss" in row]
    seconds = {"seconds": sum(row["step_time"] for row in logged), "cpu_seconds": cpu}
    totals = {key: sum(row.get(f"allotment/{key}", 0) for row in logged) for key in ("budget", "tokens")}
    result = {"arm": arm, "seed": seed, **splits, **totals, **seconds, "peak_mib": peak}
    result["margin"] = float(np.mean([row.get("rewards/margins", np.nan) for row in logged[-10:]]))
    print(json.dumps(result), flush=True)
    file_of(out, arm, seed).write_text(json.dumps(result))


def preferences(common: dict[str, Any], rounds: int, method: str, beta: float, **of: Any) -> Any:
    """DPO in ``rounds`` rounds, or at once in one with the same number of rollouts and updates."""
    from datasets import Dataset

    from allotment.integrations.trl.preferences import AllotmentDPOConfig, AllotmentDPOTrainer
    from allotment.lab.hugging_face import rows, scratchpad_reward

    sizes = {"prompts_per_round": PROMPTS, "updates_per_round": UPDATES}
    if method == "offline at once":
        sizes = {"prompts_per_round": OFFLINE_PROMPTS, "updates_per_round": UPDATES * rounds}
        sizes["num_generations"] = PROMPTS * ROLLOUTS * rounds // OFFLINE_PROMPTS
    args = AllotmentDPOConfig(
        **common | sizes,
        max_steps=UPDATES * rounds,
        logging_steps=UPDATES,
        beta=beta,
        per_device_train_batch_size=PAIRS,
        per_device_eval_batch_size=PROMPTS * ROLLOUTS,
    )
    data = Dataset.from_list(rows("pool"))

    class Offline(AllotmentDPOTrainer):
        """The initial policy draws in every round."""

        def _generate(self, wanted: Any) -> Any:
            trained, self.model = self.model, self.ref_model
            try:
                return super()._generate(wanted)
            finally:
                self.model = trained

    kind = Offline if method == "offline" else AllotmentDPOTrainer
    return kind(reward_funcs=scratchpad_reward, args=args, train_dataset=data, **of)


def grpo(common: dict[str, Any], rounds: int, method: str, beta: float, **of: Any) -> Any:
    """The same rollouts for GRPO, an update for each batch."""
    from datasets import Dataset

    from allotment.integrations.trl import AllotmentGRPOConfig, AllotmentGRPOTrainer
    from allotment.lab.hugging_face import rows, scratchpad_reward

    args = AllotmentGRPOConfig(
        **common,
        max_steps=rounds,
        logging_steps=1,
        per_device_train_batch_size=PROMPTS * ROLLOUTS,
        loss_type="dr_grpo",
        scale_rewards="none",
        beta=0.0,
    )
    data = Dataset.from_list(rows("pool"))
    return AllotmentGRPOTrainer(reward_funcs=scratchpad_reward, args=args, train_dataset=data, **of)


def file_of(out: Path, arm: str, seed: int) -> Path:
    """Where the result of a run lies."""
    return out / f"{arm.replace(', ', '-').replace(' ', '-')}-s{seed}.json"


def table(out: Path, arms: Sequence[str], seeds: Sequence[int], rounds: int) -> str:
    """The results as markdown."""
    found = {arm: [json.loads(file_of(out, arm, seed).read_text()) for seed in seeds] for arm in arms}
    names = ("pool", "to the first", "held out", "to the first", "rollouts", "tokens", "s a round", "CPU s", "peak MiB")
    lines = [f"| arm | {' | '.join(names)} |", "|---|" + "--:|" * len(names)]
    for arm, runs in found.items():
        cells = []
        for split in ("pool", "held_out"):
            own = np.array([row[split] for row in runs])
            difference = ""
            if arm != FIRST and FIRST in found and len(seeds) > 1:
                paired = Estimate.of(list(own - np.array([row[split] for row in found[FIRST]])))
                difference = f"{paired.mean:+.4f} ({paired.standard_error:.4f})"
            cells += [f"{own.mean():.4f}", difference]
        keys = ("budget", "tokens", "seconds", "cpu_seconds", "peak_mib")
        budget, tokens, seconds, cpu, peak = (np.mean([row[key] for row in runs]) for key in keys)
        cells += [f"{budget:,.0f}", f"{tokens:,.0f}", f"{seconds / rounds:.2f}", f"{cpu / rounds:.2f}", f"{peak:.0f}"]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--arms", nargs="+", choices=tuple(ARMS), default=list(ARMS))
    parser.add_argument("--rounds", type=int, default=150, help="a multiple of 6, 12 or more")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--beta", type=float)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for seed in arguments.seeds:
        for arm in arguments.arms:
            settings = (arguments.rounds, arguments.learning_rate, arguments.beta or ARMS[arm])
            if not file_of(arguments.out, arm, seed).exists():
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                    process.submit(run, arguments.out, arm, seed, *settings).result()
    print(table(arguments.out, arguments.arms, arguments.seeds, arguments.rounds))


if __name__ == "__main__":
    main()
