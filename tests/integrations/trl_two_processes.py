"""What each of two processes sees, as JSON: ``torchrun --nproc_per_node 2 trl_two_processes.py FOLDER``."""

import json
import sys
from pathlib import Path

import torch
from packaging.version import Version
from trl_cases import OURS, STOCK, TRL, dataset, figures, recording, sometimes_none, train

from allotment import VIP
from allotment.errors import AllotmentError, InfeasibleBudgetError

HALF = {"per_device_train_batch_size": 6}  # of three groups of four the second stands in both halves
SETTINGS = {
    "plain": HALF,
    "accumulation": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_iterations": 2},
    "steps_per_generation": {"per_device_train_batch_size": 4, "steps_per_generation": 4, "max_steps": 5},
}
ADAPTIVE = {
    "grpo": {**HALF, "max_steps": 6, "candidate_prompts": 6},
    "rloo": {**HALF, "max_steps": 6, "beta": 0.0, "rewards": sometimes_none, "dataloader_num_workers": 1},
    "stream": {**HALF, "max_steps": 6, "data": True},
}
if Version("1.9.0") > TRL:  # no iterable data sets
    del ADAPTIVE["stream"]


class Unable(VIP):
    """A planner that finds no split."""

    def _open(self, ids, budget):
        raise InfeasibleBudgetError(f"no split of {budget} over {len(ids)} prompts")


def compared(kind, settings, folder):
    settings = {**settings, "beta": 0.0} if kind == "rloo" else settings
    ours = train(*OURS[kind], folder / "ours", planner="uniform", **settings)
    return {"ours": figures(ours), "stock": figures(train(*STOCK[kind], folder / "stock", **settings))}


def adaptive(name, settings, folder):
    trainer, config = OURS["rloo" if name == "rloo" else "grpo"]
    if settings.pop("data", False):
        settings["data"] = dataset().to_iterable_dataset()
    made = train(recording(trainer), config, folder, **settings)
    batches = [vars(batch) for batch in made.batches]
    return {"batches": batches, "steps": made._steps_told, "figures": figures(made)}


def failing(folder):
    trainer, config = OURS["grpo"]
    try:
        train(trainer, config, folder, planner=Unable(budget=12), **HALF)
    except AllotmentError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def nothing(completions, **_):
    return [None] * len(completions)


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    seen = {"uniform": {}, "adaptive": {}}
    for kind in OURS:
        for name, settings in SETTINGS.items():
            seen["uniform"][f"{kind} {name}"] = compared(kind, settings, folder / kind / name)
    for name, settings in ADAPTIVE.items():
        seen["adaptive"][name] = adaptive(name, dict(settings), folder / name)
    seen["error"] = failing(folder / "error")
    (folder / f"rank{torch.distributed.get_rank()}.json").write_text(json.dumps(seen))
    torch.distributed.barrier()
    train(*OURS["grpo"], folder / "nothing", rewards=[nothing], **HALF)  # raises; torchrun then ends both
