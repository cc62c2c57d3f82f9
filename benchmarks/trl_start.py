"""Seconds until a TRL trainer of many prompts is built, and to its first batch: ``python benchmarks/trl_start.py``.

The stock trainer beside ours, without and with a column of prompt ids, on a data set on disk and on the same shuffled;
and by how much the folder of the data set grew.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from datasets import Dataset, load_from_disk
from trl import GRPOConfig, GRPOTrainer

from allotment.integrations.trl import AllotmentGRPOConfig, AllotmentGRPOTrainer
from allotment.lab.hugging_face import model_folder, scratchpad_reward

PROMPTS, REPEATS = 100_000, 3
SETTINGS: dict[str, Any] = {"use_cpu": True, "bf16": False, "report_to": "none", "max_steps": 1}
TRAINERS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "stock": (GRPOTrainer, GRPOConfig, {}),
    "ours": (AllotmentGRPOTrainer, AllotmentGRPOConfig, {}),
    "ours, with a column": (AllotmentGRPOTrainer, AllotmentGRPOConfig, {"prompt_id_column": "name"}),
}


def main() -> None:
    """Print a line for each data set and trainer."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [{"prompt": f"{i}+1=", "answer": str(i + 1), "name": f"p{i}"} for i in range(PROMPTS)]
        Dataset.from_list(rows).save_to_disk(str(folder / "data"))
        data = load_from_disk(str(folder / "data"))
        for kind, own in {"as it is": data, "shuffled": data.shuffle(seed=1)}.items():
            for trainer in TRAINERS:
                before = size(folder / "data")
                built, first = map(min, zip(*(seconds(trainer, own, folder) for _ in range(REPEATS)), strict=True))
                grown = size(folder / "data") - before
                print(f"{kind}, {trainer}: built in {built:.2f} s, first batch in {first:.2f} s, {grown} bytes more")


def seconds(name: str, data: Dataset, folder: Path) -> tuple[float, float]:
    """To build the trainer, and then to its first batch."""
    trainer, config, settings = TRAINERS[name]
    started = time.perf_counter()
    made = trainer(
        model=str(model_folder()),
        reward_funcs=scratchpad_reward,
        args=config(output_dir=str(folder / "run"), **SETTINGS, **settings),
        train_dataset=data,
    )
    built = time.perf_counter()
    next(iter(made.get_train_dataloader()))
    return built - started, time.perf_counter() - built


def size(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


if __name__ == "__main__":
    main()
