"""A run that is killed after its sixth step, two steps after a checkpoint: ``python trl_killed.py FOLDER``."""

import os
import signal
import sys
from pathlib import Path

import torch
from transformers import TrainerCallback
from trl_cases import OURS, dataset, recording, train

RUN = {
    "per_device_train_batch_size": 24,
    "num_generations": 6,
    "max_steps": 8,
    "save_strategy": "steps",
    "save_steps": 4,
    "candidate_prompts": 8,
}
PROMPTS = 48
"""Six batches of candidates: the checkpoint of step 4 lies inside the first epoch. In a later one the stock trainer
draws other prompts after resuming, too: its sampler starts from the seed."""


class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        if state.global_step == 6:
            os.kill(os.getpid(), signal.SIGKILL)


def whole(folder, resume=None, **of):
    trainer, config = OURS["grpo"]
    return train(recording(trainer), config, folder, data=dataset(PROMPTS), resume=resume, of=of, **RUN)


if __name__ == "__main__":
    torch.set_num_threads(1)
    whole(Path(sys.argv[1]), callbacks=[Kill()])
