"""verl's asynchronous buffer and trainers in virtual time: prompts answer after times of a long tail, nothing waits.

Real: verl's ``ReplayBufferAsync`` (poll, evict, refill, select), the trainer's ``step``, ``_update_actor`` and metrics
aggregation, the session. Virtual: the clock, TransferQueue (a table), the actor (it counts mini-batches as verl's
worker cuts them).
"""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace

import numpy as np
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1 import get_trainer_cls, replay_buffer
from verl.utils.tensordict_utils import make_iterator

POLL, TRAINING = 2.0, 30.0
"""Seconds between two looks of the buffer, and of an update."""


class Queue:
    """What verl's buffer asks of TransferQueue: keys and tags."""

    def __init__(self) -> None:
        self.partitions: dict[str, dict[str, dict]] = defaultdict(dict)

    def kv_list(self, partition_id=None):
        return {name: dict(tags) for name, tags in self.partitions.items()}

    def kv_clear(self, keys, partition_id) -> None:
        for key in keys:
            self.partitions[partition_id].pop(key, None)


class Actor:
    """verl's worker group: mini-batches of the size the batch says, over all ranks."""

    def __init__(self, ranks: int) -> None:
        self.ranks, self.updates = ranks, []

    def update_actor(self, batch):
        import torch
        from tensordict import TensorDict

        info, own = batch.extra_info, []
        real = torch.tensor([not tag.get("is_padding", False) for tag in batch.tags])
        share = len(batch) // self.ranks
        assert share * self.ranks == len(batch)
        for rank in range(self.ranks):  # as verl dispatches, and as its train_mini_batch cuts
            rows = TensorDict({"real": real[rank * share : (rank + 1) * share]}, batch_size=share)
            parts = make_iterator(rows, info["mini_batch_size"] // self.ranks, info["epochs"], 0, {"shuffle": False})
            own.append([int(part["real"].sum()) for part in parts])
        self.updates.append({"rows": np.array(own).sum(0).tolist(), "mean_over": info["global_batch_size"]})
        return {"metrics": {"loss": [0.0], "mfu": [0.0]}}


class Run:
    """A run of one of verl's asynchronous trainers.

    Args:
        config: verl's.
        session: who says the counts; None for verl's own trainer, with equal counts.
        monkeypatch: pytest's.
        seed: of response times and rewards.
        fails: share of prompts that fail.
    """

    def __init__(self, config, session, monkeypatch, *, seed=0, fails=0.0, ranks=2, warmup=1.5) -> None:
        self.config, self.session, self.queue, self.clock = config, session, Queue(), 0.0
        self.random, self.fails, self.ready, self.number = np.random.default_rng(seed), fails, {}, 0
        self.asked: dict[str, int] = {}
        self.came: dict[str, int] = {}
        """Step in which each prompt came back."""
        self.trained: list[dict[str, int]] = []
        monkeypatch.setattr(replay_buffer, "tq", self.queue)
        monkeypatch.setattr(replay_buffer.time, "sleep", self._pass)
        mode = config.trainer.v1.trainer_mode.removeprefix("allotment_")
        base = get_trainer_cls(("allotment_" if session else "") + mode)
        self.trainer = trainer = object.__new__(type("Virtual", (_Steps, base), {}))
        trainer.run, trainer.config, trainer.use_critic, trainer.trainer_mode = self, config, False, mode
        trainer.parameter_sync_step = config.trainer.v1.get(mode).get("parameter_sync_step", 1)
        trainer.global_steps, trainer.actor_rollout_wg, trainer._passes_made = 1, Actor(ranks), 0
        trainer.replay_buffer = trainer._build_replay_buffer()
        self.fetch(int(warmup * config.data.train_batch_size))

    def fetch(self, prompts: int) -> int:
        """New prompts: their counts, and when each comes back."""
        uids = [f"{self.number + i:08x}" for i in range(prompts)]
        keys = [f"d/{(self.number + i) % 48}" for i in range(prompts)]
        self.number += prompts
        tags = {"is_prompt": True, "status": "running", "global_steps": self.trainer.global_steps}
        self.queue.partitions["train"].update({uid: dict(tags) for uid in uids})
        counts = [self.config.actor_rollout_ref.rollout.n] * prompts
        if self.session is not None:
            counts = self.session.plan(uids, keys, self.trainer.global_steps, set(self.queue.partitions["train"]))
        for uid, count in zip(uids, counts, strict=True):
            self.asked[uid] = count
            self.ready[uid] = self.clock + 5 * (1 + self.random.pareto(1.2, max(count, 1))).max()
        return prompts

    def _pass(self, seconds: float) -> None:
        self.clock += seconds
        train = self.queue.partitions["train"]
        for uid in [uid for uid, at in self.ready.items() if at <= self.clock]:
            del self.ready[uid]
            failed = self.random.random() < self.fails
            train[uid]["status"] = "failure" if failed else "finished"
            if not failed:
                self.came[uid] = self.trainer.global_steps
                train.update({f"{uid}_{i}_0": {"status": "success"} for i in range(self.asked[uid])})

    def updates(self, steps: int) -> list[dict]:
        """What each optimizer pass trained on, and the metrics of each step."""
        self.metrics = []
        for step in range(1, steps + 1):
            self.trainer.global_steps = step
            metrics: dict = {}
            self.trainer.step(metrics, defaultdict(float))
            self.metrics.append(metrics)
        return self.trainer.actor_rollout_wg.updates


class _Steps:
    """The steps of verl's trainer between its buffer and its actor, without a model."""

    def _add_prompts_to_generate(self, num_prompts):
        return self.run.fetch(num_prompts)

    def prepare_step(self):
        self.run.fetch(self.config.data.train_batch_size)
        return {}

    def _step_once(self, metrics, timing_raw, sample_batch_size):
        run = self.run
        batch, more = self.replay_buffer.sample(
            global_steps=self.global_steps, partition_id="train", batch_size=sample_batch_size
        )
        metrics.update(more)
        uids = [key.split("_")[0] for key in batch.keys]
        run.trained.append({uid: uids.count(uid) for uid in set(uids)})
        batch = self._filled(batch)
        if run.session is not None:
            p_N = np.array([int(uid, 16) % 48 % 5 / 4 for uid in uids])
            run.session.tell(uids, (run.random.random(len(uids)) < p_N).astype(float), [1] * len(uids))
        batch = self._update_actor(batch, metrics)
        run._pass(TRAINING)
        return batch

    def _filled(self, batch):
        """As verl's ``upsample_batch_to_divisible_size`` does."""
        multiple = self._get_required_batch_multiple(self.actor_rollout_wg.ranks)
        missing = -len(batch) % multiple
        return KVBatchMeta(
            keys=[*batch.keys, *(f"pad{batch.keys[0].split('_')[0]}_{i}_0" for i in range(missing))],
            tags=[*batch.tags, *({"is_padding": True} for _ in range(missing))],
            partition_id="train",
        )


def stock_steps(run: Run) -> list[SimpleNamespace]:
    """Optimizer passes that verl alone would have made of the same batches."""
    actor, n = run.config.actor_rollout_ref.actor, run.config.actor_rollout_ref.rollout.n
    return [-(-sum(batch.values()) // (actor.ppo_mini_batch_size * n)) for batch in run.trained]
