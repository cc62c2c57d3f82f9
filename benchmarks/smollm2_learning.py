"""SmolLM2-135M-Instruct learns short sums in TRL: uniform counts against this library's designs, paired by seed.

    python benchmarks/smollm2_learning.py MODEL_FOLDER runs/smollm2-learning [--steps 12] [--seeds 0 1] [--arms vip ...]

Sums of reasoning-gym's chain_sum (two terms of one or two digits) with two worked ones before them; an answer ends with
its line. ``AllotmentGRPOTrainer`` trains adapters (LoRA) in the last blocks; vip and joint know the numbers counted in
a sum (without, every first visit would get uniform's counts). Judged is the exact success probability on prompts of the
pool and on held-out ones, before and after training. A run is resumed from its last checkpoint, finished runs are not
repeated. On a GPU: ``--device cuda --steps 200 --seeds 0 1 2 --prompts 32 --rollouts 8 --blocks 30``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import reasoning_gym
import torch
from rich.progress import track

from allotment.prediction import text_features
from allotment.report.summary import Estimate
from allotment.run_logs.files import write_atomically

ARMS: dict[str, dict[str, Any]] = {
    "uniform": {"planner": "uniform"},
    "vip": {"planner": "vip"},
    "joint": {"planner": "joint"},
    "uniform, 2x budget": {"planner": "uniform"},
}
WORKED, MAX_TOKENS = 2, 5
END = "\n"


def problems(tokenizer: Any, pool: int, held_out: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of both splits, no sum twice, each with the tokens of its right answer; the worked ones are in neither."""
    options = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}
    made = reasoning_gym.create_dataset("chain_sum", size=4 * (pool + held_out) + 3, seed=7, **options)
    sums = {entry["question"].split(": ")[1]: str(entry["answer"]) for entry in made}
    shortest = sorted(sums, key=len)[:WORKED]
    worked = "".join(f"{asked} {sums.pop(asked)}{END}" for asked in shortest)
    rows = [
        {"prompt": worked + asked, "right": tokenizer.encode(f" {answer}{END}"), "prompt_id": asked}
        for asked, answer in sums.items()
    ]
    return rows[:pool], rows[pool : pool + held_out]


def reward(completion_ids: Sequence[list[int]], right: Sequence[list[int]], **_: object) -> list[float]:
    """1.0 for exactly the right answer and the end of its line."""
    return [float(ids == wanted) for ids, wanted in zip(completion_ids, right, strict=True)]


def tokenizer_of(folder: Path) -> Any:
    """The model's tokenizer, for which an answer ends with its line."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left")
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(tokenizer.encode(END, add_special_tokens=False)[-1])
    return tokenizer


@torch.inference_mode()
def chances(model: Any, tokenizer: Any, rows: Sequence[dict[str, Any]], at_once: int = 32) -> list[float]:
    """Of each row, the success probability: that of the right answer's tokens and the end of its line."""
    found: list[float] = []
    for first in range(0, len(rows), at_once):
        part = rows[first : first + at_once]
        asked = [tokenizer.encode(row["prompt"], add_special_tokens=False) for row in part]
        said = [row["right"] for row in part]
        width = max(len(a) + len(s) for a, s in zip(asked, said, strict=True))
        ids_BT = torch.full((len(part), width), tokenizer.pad_token_id)
        scored_BT = torch.zeros(len(part), width, dtype=torch.bool)
        for row, (a, s) in enumerate(zip(asked, said, strict=True)):
            ids_BT[row, : len(a) + len(s)] = torch.tensor(a + s)  # padded on the right: what comes later is not seen
            scored_BT[row, len(a) : len(a) + len(s)] = True
        logits = model(ids_BT.to(model.device)).logits[:, :-1].float().log_softmax(-1).cpu()
        log_probs_BT = logits.gather(2, ids_BT[:, 1:, None])[:, :, 0]
        found += torch.where(scored_BT[:, 1:], log_probs_BT, 0.0).sum(1).exp().tolist()
    return found


def result(out: Path, arm: str, seed: int) -> Path:
    """Where the result of a run lies."""
    return out / f"{arm.replace(', ', '-').replace(' ', '-')}-s{seed}.json"


def run(own: argparse.Namespace, arm: str, seed: int) -> None:
    """One run, or the rest of one; its result is a JSON file, written at the end."""
    if result(own.out, arm, seed).exists():
        return
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, PrinterCallback
    from transformers.trainer_utils import get_last_checkpoint

    from allotment.integrations.trl import AllotmentGRPOConfig, AllotmentGRPOTrainer

    folder = result(own.out, arm, seed).with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer_of(own.model)
    pool, held_out = problems(tokenizer, own.pool, own.held_out)
    counted = text_features([row["prompt_id"] for row in pool])
    np.save(own.out / "counted.npy", counted / np.where(counted.std(0) > 0, counted.std(0), 1.0))
    causal: Any = AutoModelForCausalLM
    model = causal.from_pretrained(own.model, dtype=torch.float32)
    blocks = model.config.num_hidden_layers
    rollouts = own.rollouts * (2 if arm.endswith("2x budget") else 1)
    trainer = AllotmentGRPOTrainer(
        model=model,
        reward_funcs=reward,
        peft_config=LoraConfig(
            r=own.rank,
            lora_alpha=2 * own.rank,
            lora_dropout=0.0,
            target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
            layers_to_transform=list(range(max(blocks - own.blocks, 0), blocks)),
        ),
        args=AllotmentGRPOConfig(
            output_dir=str(folder),
            seed=seed,
            max_steps=own.steps,
            per_device_train_batch_size=own.prompts * rollouts,
            num_generations=rollouts,
            learning_rate=own.rate,
            lr_scheduler_type="constant",
            beta=0.0,
            loss_type="dr_grpo",
            scale_rewards="none",
            max_completion_length=MAX_TOKENS,
            prompt_id_column="prompt_id",
            use_cpu=own.device == "cpu",
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="steps",
            save_steps=own.save_steps,
            save_total_limit=1,
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
            **_settings(own, arm),
        ),
        train_dataset=Dataset.from_list(pool),
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    judged = pool[: own.judged], held_out[: own.judged]
    started = own.out / f"before-{own.judged}.json"
    if not started.exists():
        write_atomically(started, json.dumps([chances(trainer.model.eval(), tokenizer, rows) for rows in judged]))
    before = json.loads(started.read_text())
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)))
    after = [chances(trainer.model.eval(), tokenizer, rows) for rows in judged]
    steps = [row for row in trainer.state.log_history if "loss" in row]
    totals = {key: float(np.sum([row[f"allotment/{key}"] for row in steps])) for key in ("budget", "tokens")}
    means = {key: float(np.mean([row[key] for row in steps])) for key in ("step_time", "allotment/dead_rollouts")}
    first_and_last = {
        name: float(np.mean([row["reward"] for row in part]))
        for name, part in (("first", steps[: max(len(steps) // 3, 1)]), ("last", steps[-max(len(steps) // 3, 1) :]))
    }
    gained = {
        name: [float(np.mean(old)), float(np.mean(new))]
        for name, old, new in zip(("pool", "held_out"), before, after, strict=True)
    }
    figures = {**gained, **totals, **means, **first_and_last, "steps": len(steps)}
    write_atomically(result(own.out, arm, seed), json.dumps(figures))


def _settings(own: argparse.Namespace, arm: str) -> dict[str, Any]:
    settings = dict(ARMS[arm])
    if arm == "joint":
        settings["candidate_prompts"] = own.prompts * own.rollouts
    if arm in ("vip", "joint"):
        settings["prompt_embeddings"] = str(own.out / "counted.npy")
    return settings


def table(own: argparse.Namespace) -> str:
    """Markdown: means over seeds; gains of the chance of a right answer, and the paired difference to the first arm."""
    found = {arm: [json.loads(result(own.out, arm, seed).read_text()) for seed in own.seeds] for arm in own.arms}
    titles = ["arm", "steps", "rollouts", "tokens", "s a step", "reward, first third", "last third", "dead"]
    titles += [
        f"{split}{what}" for split in ("pool", "held out") for what in (" before", ", gain (se)", ", to the first")
    ]
    lines = ["| " + " | ".join(titles) + " |", "|---|" + "--:|" * (len(titles) - 1)]
    for arm, runs in found.items():
        cells = []
        for split in ("pool", "held_out"):
            gains = np.array([run[split][1] - run[split][0] for run in runs])
            reference = np.array([run[split][1] - run[split][0] for run in found[own.arms[0]]])
            cells += [f"{np.mean([run[split][0] for run in runs]):.4f}", _with_error(gains)]
            cells.append("" if arm == own.arms[0] else _with_error(gains - reference))
        mean = {
            key: float(np.mean([run[key] for run in runs]))
            for key in ("steps", "budget", "tokens", "step_time", "first", "last")
        }
        dead = np.mean([run["allotment/dead_rollouts"] for run in runs])
        lines.append(
            f"| {arm} | {mean['steps']:.0f} | {mean['budget']:.0f} | {mean['tokens']:.0f} | "
            f"{mean['step_time']:.1f} | {mean['first']:.3f} | {mean['last']:.3f} | {dead:.2f} | "
            + " | ".join(cells) + " |"
        )  # fmt: skip
    return "\n".join(lines)


def _with_error(values: np.ndarray) -> str:
    estimate = Estimate.of(list(values))
    error = "-" if estimate.standard_error is None else f"{estimate.standard_error:.4f}"
    return f"{estimate.mean:+.4f} ({error})"


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of prepare-smollm2")
    parser.add_argument("out", type=Path)
    parser.add_argument("--arms", nargs="+", default=["uniform", "vip"], choices=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--save-steps", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=8, help="of a step")
    parser.add_argument("--rollouts", type=int, default=4, help="of a prompt, on average")
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--blocks", type=int, default=8, help="last blocks that have adapters")
    parser.add_argument("--pool", type=int, default=300)
    parser.add_argument("--held-out", type=int, default=100)
    parser.add_argument("--judged", type=int, default=100, help="prompts of each split")
    parser.add_argument("--device", default="cpu", help="cpu, else what TRL finds")
    own = parser.parse_args()
    torch.set_num_threads(1)
    own.out.mkdir(parents=True, exist_ok=True)
    jobs = [(arm, seed) for seed in own.seeds for arm in own.arms]
    for arm, seed in track(jobs, description="Runs"):
        run(own, arm, seed)
    print(table(own))


if __name__ == "__main__":
    main()
