"""verl's own entry point on a CPU: its Ray workers, queue, buffer, advantages; the lab's tiny policy for its engines.

    python tests/integrations/verl/lab_verl.py OUT [--steps 20] [lab.kill=agent|reward|idle lab.kill_at=N] [overrides]

Runs ``python -m verl.trainer.main_ppo`` with the trainers of this file, ``lab_NAME`` for each NAME of verl's registry.
Real: hydra, verl's checks, its task runner, Ray, TransferQueue, agent-loop and reward-loop workers, replay buffer,
padding, advantage code, checkpoints of the data loader, the trainers' loops. Replaced, because they need a GPU: the
language-model servers and the actor's engine, both by :class:`Policy`, a Hugging Face model that samples, scores and is
updated, mini-batch by mini-batch, in one Ray actor.

Leaves in OUT: ``steps.jsonl`` with what each update trained on, ``rollouts.jsonl``, verl's checkpoints and metrics.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import ray
import torch
import transfer_queue as tq
from tensordict import TensorDict
from torch.nn.utils.rnn import pad_sequence
from verl.experimental.reward_loop import RewardLoopManager
from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY, get_trainer_cls, register_trainer
from verl.workers.rollout.llm_server import LLMServerClient
from verl.workers.rollout.replica import TokenOutput

import allotment.integrations.verl  # noqa: F401 (its trainers: verl loads this file before it looks for plug-ins)
from allotment.lab.hugging_face import SCRATCHPAD, model_folder, rows

PROMPTS, MEAN = 16, 8
FILE = Path(__file__)
warnings.filterwarnings("error", module="allotment")  # our own code's, in the trainer's process


@ray.remote
class Policy:
    """The model, its sampler and its optimiser; requests that are waiting are answered in one batch."""

    def __init__(self, learning_rate: float, tail: float) -> None:
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(1)
        torch.manual_seed(0)
        self.model = AutoModelForCausalLM.from_pretrained(model_folder())
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=learning_rate)
        self.waiting: list[tuple[list[int], asyncio.Future]] = []
        self.version, self.tail, self.random = 0, tail, random.Random(0)

    async def generate(self, prompt_ids: list[int]) -> tuple[list[int], list[float], int]:
        """Tokens, their log-probabilities, and how often the policy had been updated."""
        if self.tail:  # most answers come at once, a few take very long
            await asyncio.sleep(self.tail * min(self.random.paretovariate(1.2) - 1, 30))
        answer = asyncio.get_running_loop().create_future()
        self.waiting.append((prompt_ids, answer))
        if len(self.waiting) == 1:
            await asyncio.sleep(0.1)  # for the others
            waiting, self.waiting = self.waiting, []
            for (_, future), sampled in zip(waiting, self.sample([p for p, _ in waiting]), strict=True):
                future.set_result(sampled)
        return await answer

    @torch.no_grad()
    def sample(self, prompts: list[list[int]]) -> list[tuple[list[int], list[float], int]]:
        longest = max(map(len, prompts))
        tokens = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        made = self.model.generate(
            input_ids=tokens, attention_mask=mask, max_new_tokens=SCRATCHPAD.max_tokens, do_sample=True, top_k=0
        )[:, longest:]
        ended = (made == self.model.config.eos_token_id).cumsum(1)
        lengths = (ended == 0).sum(1).add(1).clamp(max=made.shape[1]).tolist()
        return [(row[:n].tolist(), [0.0] * n, self.version) for row, n in zip(made, lengths, strict=True)]

    def log_probs(self, sequences: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """[N, T] of each next token, and the entropy, as verl's engines give them: shifted by one."""
        ids = pad_sequence(sequences, batch_first=True)
        logits = self.model(ids, attention_mask=pad_sequence([torch.ones_like(s) for s in sequences], True)).logits
        log_p = logits.log_softmax(-1)
        taken = log_p[:, :-1].gather(2, ids[:, 1:, None]).squeeze(2)
        return torch.nn.functional.pad(taken, (0, 1)), -(log_p.exp() * log_p).sum(-1)

    @torch.no_grad()
    def score(self, sequences: list[torch.Tensor]) -> list[list[torch.Tensor]]:
        both = self.log_probs(sequences)
        return [[row[: len(s)].clone() for row, s in zip(values, sequences, strict=True)] for values in both]

    def update(self, sequences, responses, advantages, is_real, mini_batch_size, mean_over, epochs) -> dict:
        """One pass for each mini-batch, as verl's worker makes them: a mean over ``mean_over`` rollouts."""
        passes = []
        for first in [*range(0, len(sequences), mini_batch_size)] * epochs:
            rows = slice(first, first + mini_batch_size)
            one = sequences[rows], responses[rows], advantages[rows], is_real[rows]
            passes.append(self.update_once(*one, mean_over))
        losses, norms, real = zip(*passes, strict=True)
        return {"loss": sum(losses), "grad_norm": max(norms), "mfu": 0.0, "rows": list(real)}

    def update_once(self, sequences, responses, advantages, is_real, mean_over) -> tuple[float, float, int]:
        log_p, _ = self.log_probs(sequences)
        own = [
            log_p[i, len(s) - len(r) - 1 : len(s) - 1].sum()
            for i, (s, r) in enumerate(zip(sequences, responses, strict=True))
        ]
        real = [i for i, counts in enumerate(is_real) if counts]
        loss = -sum(advantages[i][0] * own[i] for i in real) / mean_over
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.version += 1
        return float(loss), float(norm), len(real)

    def state(self, state=None):
        """The parameters and moments; or take them over."""
        if state is None:
            return self.model.state_dict(), self.optimizer.state_dict(), self.version
        self.model.load_state_dict(state[0])
        self.optimizer.load_state_dict(state[1])
        self.version = state[2]
        return None


class Client(LLMServerClient):
    """verl's client of language-model servers, in front of :class:`Policy`."""

    def __init__(self, config, policy) -> None:
        super().__init__(config)
        self.policy = policy

    async def generate(self, request_id, *, prompt_ids, sampling_params, **_) -> TokenOutput:
        tokens, log_probs, version = await self.policy.generate.remote(list(prompt_ids))
        versions = {"min_global_steps": version, "max_global_steps": version}
        return TokenOutput(token_ids=tokens, log_probs=log_probs, stop_reason="completed", extra_fields=versions)


class Actor:
    """The worker group of verl's actor: one data-parallel rank, :class:`Policy`."""

    def __init__(self, policy) -> None:
        self.policy, self._dispatch_info = policy, {"actor": [0]}

    def _get(self, batch, *fields):
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=list(fields))
        return [list(data[name].unbind()) for name in fields]

    def compute_log_prob(self, batch):
        (sequences,) = self._get(batch, "input_ids")
        both = ray.get(self.policy.score.remote(sequences))
        nested = [torch.nested.as_nested_tensor(values, layout=torch.jagged) for values in both]
        fields = TensorDict(dict(zip(("log_probs", "entropy"), nested, strict=True)), batch_size=len(batch))
        return tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=fields)

    def update_actor(self, batch):
        info, data = batch.extra_info, self._get(batch, "input_ids", "responses", "advantages")
        is_real = [not tag.get("is_padding", False) for tag in batch.tags]
        sizes = info["mini_batch_size"], info["global_batch_size"], info["epochs"]
        metrics = ray.get(self.policy.update.remote(*data, is_real, *sizes))
        self.passes = {"passes": metrics.pop("rows"), "mean_over": sizes[1]}
        return {"metrics": metrics}

    def save_model_to_cpu(self, *_) -> None:
        """Of decoupled PPO, which this actor does not do."""

    restore_model_from_cpu = clear_cpu_model = save_model_to_cpu

    def save_checkpoint(self, path, *_, **__) -> None:
        os.makedirs(path, exist_ok=True)
        torch.save(ray.get(self.policy.state.remote()), Path(path) / "policy.pt")

    def load_checkpoint(self, local_path, **_) -> None:
        ray.get(self.policy.state.remote(torch.load(Path(local_path) / "policy.pt", weights_only=False)))


class Nothing:
    """Answers every call with nothing: weight transfer and profiling, which one process does not need."""

    def __getattr__(self, name):
        return lambda *_, **__: None


def on_cpu(trainer_class):
    """One of verl's trainers with the engines replaced, and a log of what each step trained on."""

    class LabTrainer(trainer_class):
        def __init__(self, config):
            config.trainer.v1.trainer_mode = config.trainer.v1.trainer_mode.removeprefix("lab_")  # verl goes by it
            super().__init__(config)

        def _setup(self):
            self._init_tokenizer()
            self._init_dataloader()
            self._init_dump_executor()
            lab = self.config.lab
            self.policy = Policy.options(max_concurrency=10_000).remote(float(lab.learning_rate), float(lab.tail))
            self.actor_rollout_wg = Actor(self.policy)
            self.ref_in_actor = False
            self.reward_loop_manager = RewardLoopManager(config=self.config)
            self.teacher_model_manager = self.distillation_config = None
            self.checkpoint_manager = self.standalone_checkpoint_manager = Nothing()
            self.llm_server_manager = None
            self.current_mode = "trainer"  # of separate_async: rollouts have machines of their own
            self.replay_buffer.poll_interval = 0.2
            self.resource_pool_manager = SimpleNamespace(get_n_gpus=lambda: 1)
            self._load_checkpoint()

        def get_llm_client(self):
            return Client(self.config, self.policy)

        def on_step_begin(self):
            super().on_step_begin()
            self._kill("idle", lambda: self.agent_loop_manager.agent_loop_workers)

        def on_sample_begin(self):
            super().on_sample_begin()
            self._kill("agent", lambda: self.agent_loop_manager.agent_loop_workers)
            self._kill("reward", lambda: self.reward_loop_manager.reward_loop_workers)

        def _kill(self, kind, workers):
            if self.config.lab.kill == kind and self.global_steps == self.config.lab.kill_at:
                ray.kill(workers()[0])

        def _get_n_gpus_for_throughput(self):
            return 1

        def _update_actor(self, batch, metrics):
            batch = super()._update_actor(batch, metrics)
            fields = ["advantages", "rm_scores"]
            data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
            first = [row[0].item() if len(row) else 0.0 for row in data["advantages"].unbind()]
            rewards = data["rm_scores"].sum(dim=1).tolist()
            padding = [bool(tag.get("is_padding", False)) for tag in batch.tags]
            row = {"step": self.global_steps, "keys": batch.keys, "padding": padding, "advantages": first}
            with open(Path(self.config.trainer.default_local_dir) / "steps.jsonl", "a") as file:
                file.write(json.dumps({**row, "rewards": rewards, **self.actor_rollout_wg.passes}) + "\n")
            return batch

    return LabTrainer


def prepare(out: Path) -> None:
    """Model folder with a chat template, and the lab's prompts in verl's parquet layout."""
    import pandas

    out.mkdir(parents=True, exist_ok=True)
    shutil.copytree(model_folder(), out / "model", dirs_exist_ok=True)
    file = out / "model" / "tokenizer_config.json"
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    file.write_text(json.dumps({**json.loads(file.read_text()), "chat_template": template}))
    for split in ("pool", "held_out"):
        pandas.DataFrame(
            {
                "data_source": "lab",
                "prompt": [{"role": "user", "content": row["prompt"]}],
                "reward_model": {"style": "rule", "ground_truth": row["answer"]},
                "extra_info": {"index": row["prompt_id"], "split": split},
            }
            for row in rows(split)[:: 1 if split == "pool" else 8]
        ).to_parquet(out / f"{split}.parquet")


def overrides_for(out: Path, steps: int, more: list[str]) -> list[str]:
    """verl's configuration of a run on two cores."""
    given = {
        "data.train_files": out / "pool.parquet",
        "data.val_files": out / "held_out.parquet",
        "data.train_batch_size": PROMPTS,
        "data.max_prompt_length": 48,
        "data.max_response_length": SCRATCHPAD.max_tokens,
        "data.dataloader_num_workers": 0,
        "data.seed": 0,
        "actor_rollout_ref.model.path": out / "model",
        "actor_rollout_ref.rollout.name": "vllm",
        "actor_rollout_ref.rollout.n": MEAN,
        "actor_rollout_ref.rollout.tensor_model_parallel_size": 1,
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu": 2,
        "actor_rollout_ref.rollout.agent.num_workers": 2,
        "actor_rollout_ref.actor.ppo_mini_batch_size": PROMPTS // 2,
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": 2,
        "actor_rollout_ref.actor.loss_agg_mode": "seq-mean-token-sum",
        "reward.num_workers": 1,
        "reward.custom_reward_function.path": FILE.with_name("lab_reward.py"),
        "trainer.device": "cpu",
        "trainer.n_gpus_per_node": 1,
        "trainer.nnodes": 1,
        "trainer.logger": "[file]",
        "trainer.default_local_dir": out,
        "hydra.run.dir": out / "hydra",
        "trainer.total_training_steps": steps,
        "trainer.total_epochs": 1000,
        "trainer.test_freq": -1,
        "trainer.save_freq": -1,
        "trainer.val_before_train": False,
        "trainer.v1.trainer_mode": "lab_allotment_sync",
        "algorithm.adv_estimator": "allotment_rloo",
        "transfer_queue.backend.SimpleStorage.num_data_storage_units": 1,
        "ray_kwargs.ray_init.num_cpus": 16,
        "+ray_kwargs.ray_init.include_dashboard": False,
        "+lab.learning_rate": 1e-4,
        "+lab.kill": "null",
        "+lab.kill_at": 0,
        "+lab.tail": 0.0,
    }
    return [*(f"{key}={value}" for key, value in given.items()), *more]


for _name in list(TRAINER_REGISTRY):
    if not _name.startswith("lab_"):
        register_trainer(f"lab_{_name}")(on_cpu(get_trainer_cls(_name)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=20)
    arguments, rest = parser.parse_known_args()
    if not (arguments.out / "model").exists():
        prepare(arguments.out)
    os.environ.setdefault("VERL_FILE_LOGGER_PATH", str(arguments.out / "metrics.jsonl"))
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "VERL_USE_EXTERNAL_MODULES": FILE.stem}
    os.environ["PYTHONPATH"] = os.pathsep.join([str(FILE.parent.absolute()), os.environ.get("PYTHONPATH", "")])
    overrides = overrides_for(arguments.out.absolute(), arguments.steps, rest)
    os.execv(sys.executable, [sys.executable, "-m", "verl.trainer.main_ppo", *overrides])
