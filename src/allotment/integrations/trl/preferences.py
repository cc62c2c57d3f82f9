"""On-policy DPO by TRL's ``DPOTrainer``: every epoch is a round of fresh rollouts, against a fixed reference.

    from allotment.integrations.trl.preferences import AllotmentDPOConfig, AllotmentDPOTrainer, preference_dataset

In a round the planner is asked for counts, the model generates, reward functions judge, and unequal rewards of a prompt
become pairs. It is one call of ``train()``: the optimiser's moments, schedule, logs and checkpoints are TRL's and go on
from round to round, and so does its reference, the policy of the start.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from trl import DPOTrainer

from allotment.errors import RewardMismatchError
from allotment.integrations.capabilities import TRL_DPO
from allotment.integrations.trl.building import Arithmetic, planner_for
from allotment.integrations.trl.preference_config import AllotmentDPOConfig, refuse
from allotment.integrations.trl.preference_data import RoundLoader, draw, preference_dataset, prompts_of_round
from allotment.integrations.trl.preference_rollouts import Rollouts, Row, checked_functions, generate, rewards_of
from allotment.integrations.trl.prompts import PromptIdentity
from allotment.methods.objectives.pairs import Pairs, preference_pairs
from allotment.planning import Outcome
from allotment.planning.planner import PLANNER_FILE
from allotment.run_logs.figures import rollout_rows, step_figures
from allotment.run_logs.one_writer import TRAINER_LOCK, one_writer
from allotment.run_logs.rollout_log import RolloutLog
from allotment.state import load_state, save_state
from allotment.types import IntArray, Plan, PromptId

__all__ = ["AllotmentDPOConfig", "AllotmentDPOTrainer", "preference_dataset"]

KIND = "trl-preferences"


class AllotmentDPOTrainer(DPOTrainer):
    """TRL's ``DPOTrainer`` on pairs of its own model's rollouts, the planner deciding each prompt's number.

    Args:
        model, ref_model: as TRL takes them. The reference is ``ref_model``, else the model as it is given; to resume,
            give the same again.
        reward_funcs: function or functions in the form ``GRPOTrainer`` takes; their sum is the reward.
        args: the settings.
        train_dataset: rows with ``prompt`` and what the reward functions read.
        eval_dataset: the same, or a dict of such; evaluated by the reward of one sampled completion of each row.
        kwargs: what else ``DPOTrainer`` takes.

    Raises:
        ConfigError: the settings do not fit each other, the data set or the machine.
    """

    control: Any

    def __init__(
        self,
        model: Any,
        reward_funcs: Any,
        args: AllotmentDPOConfig,
        train_dataset: Any,
        eval_dataset: Any = None,
        ref_model: Any = None,
        **kwargs: Any,
    ) -> None:
        self._functions = checked_functions(reward_funcs)
        if ref_model is None and not isinstance(model, str):
            ref_model = deepcopy(model)  # TRL would load what lies on disk under the model's name
        super().__init__(model, ref_model, args, train_dataset=train_dataset, eval_dataset=eval_dataset, **kwargs)
        if self.accelerator.num_processes > 1:
            refuse("the number of processes", self.accelerator.num_processes, "1", "start it without torchrun")
        identity = PromptIdentity(train_dataset, args.prompt_id_column)
        self._row_of: dict[PromptId, int] = {}
        for row, prompt in enumerate([] if identity.stored is None else identity.all()):
            self._row_of.setdefault(prompt, row)
        if len(self._row_of) < args.prompts_per_round:
            got = "an iterable data set" if identity.stored is None else f"{len(self._row_of)} prompts"
            refuse("the data set", got, f"a map-style one of at least {args.prompts_per_round} prompts", "load more")
        prompts, mean = args.prompts_per_round, args.num_generations
        sizes = Arithmetic(prompts * mean, mean, prompts, prompts)
        self.planner = planner_for(args, sizes, identity, estimator="rloo", seed=args.seed, trainer=TRL_DPO)
        self._rollout_log = RolloutLog(Path(args.output_dir) / "rollouts.jsonl")
        self._rounds_told = 0
        self._since = time.perf_counter()

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset  # of prompts; pairs are tokens from the start

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """TRL's. Raises RunDirectoryError: another process trains into ``output_dir``."""
        with one_writer(self._rollout_log.path.parent, lock=TRAINER_LOCK):
            return super().train(*args, **kwargs)

    def get_train_dataloader(self) -> Any:
        """The batches of a round, of which an epoch consists."""
        return RoundLoader(self.round_batches, self.args.updates_per_round * self.args.gradient_accumulation_steps)

    def round_batches(self, number: int) -> Iterator[dict[str, Tensor]]:
        """The batches of round ``number``, from 0 on; rollouts are generated when the first is asked for."""
        self._since = time.perf_counter()
        args = self.args
        prompts = prompts_of_round(list(self._row_of), args.prompts_per_round, number, args.seed)
        plan = self.planner.ask(prompts, budget=len(prompts) * args.num_generations)
        try:
            rollouts, pairs = self._carry_out(plan, time.perf_counter() - self._since)
        except BaseException:
            with suppress(RewardMismatchError):  # it was told before the error
                self.planner.cancel(plan)
            raise
        batches = args.updates_per_round * args.gradient_accumulation_steps
        if not len(pairs):
            yield from [{"input_ids": torch.zeros(0, 1, dtype=torch.long)}] * batches
            return
        generator = np.random.default_rng((args.seed, number, 1))
        drawn = draw(pairs.shares_P.numpy(), batches * args.per_device_train_batch_size, generator)
        for part in np.split(drawn, batches):
            yield self.data_collator(rollouts.pairs(pairs.chosen_P[part].tolist(), pairs.rejected_P[part].tolist()))

    def _carry_out(self, plan: Plan, seconds: float) -> tuple[Rollouts, Pairs]:
        """The rollouts of a plan, made in ``seconds``, and pairs of those with a reward; the planner is told."""
        ids = plan.group_ids()
        rows = [self.train_dataset[self._row_of[prompt]] for prompt in ids]
        made = self._generate(rows)
        rewards_N = rewards_of(self._functions, rows, made)
        scored_S = np.flatnonzero(np.isfinite(rewards_N))
        if not len(scored_S):
            refuse("a round", "None for every rollout", "a reward for at least one", "check the reward functions")
        groups_N = np.repeat(np.arange(len(plan.counts)), plan.counts)
        groups_S, rows_S = torch.from_numpy(groups_N[scored_S]), torch.from_numpy(scored_S)
        pairs = preference_pairs(torch.from_numpy(rewards_N[scored_S]), groups_S, self.args.pairs)
        ids_S, started = [ids[row] for row in scored_S], time.perf_counter()
        outcome = self.planner.tell(plan, rewards_N[scored_S], ids_S, allow_missing_groups=True)
        seconds += time.perf_counter() - started
        tokens_Q = np.bincount(groups_N, [len(c) for c in made.completion_ids], len(plan.counts)).astype(np.int64)
        self._log_round(plan, outcome, tokens_Q, pairs, seconds)
        return made, replace(pairs, chosen_P=rows_S[pairs.chosen_P], rejected_P=rows_S[pairs.rejected_P])

    def _log_round(self, plan: Plan, outcome: Outcome, tokens_Q: IntArray, pairs: Pairs, seconds: float) -> None:
        threshold = self.planner.success_threshold
        figures = step_figures(plan, len(plan.prompt_ids), outcome, threshold, "rloo")
        figures |= {"pairs": float(len(pairs)), "without_pair": pairs.without_pair / pairs.groups}
        figures |= {"tokens": float(tokens_Q.sum()), "seconds": seconds}
        for name, value in figures.items():
            self._metrics["train"][f"allotment/{name}"].append(value)
        self._rollout_log.append(rollout_rows(plan, outcome, tokens_Q, threshold))
        self._rounds_told = plan.step + 1

    def training_step(self, model: Any, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """TRL's; for a round without pairs there are no gradients, and the optimiser leaves all as it is."""
        if not inputs["input_ids"].numel():
            model.train()  # as TRL's does: it looks there which figures a log is of
            return torch.zeros((), device=self.args.device)
        return super().training_step(model, inputs, *args, **kwargs)  # type: ignore[no-any-return]

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Mean reward of one sampled completion of each row: ``PREFIX_reward``, ``PREFIX_NAME_reward`` of a dict."""
        given = self.eval_dataset if eval_dataset is None else eval_dataset
        sets = {f"_{name}": data for name, data in given.items()} if isinstance(given, dict) else {"": given}
        was_training = self.model.training
        self.model.eval()  # where TRL looks which figures a log is of
        metrics = {}
        for name, data in sets.items():
            rows = list(data)
            rewards_N = rewards_of(self._functions, rows, self._generate(rows))
            metrics[f"{metric_key_prefix}{name}_reward"] = float(np.nanmean(rewards_N))
        self.log(dict(metrics))
        self.model.train(was_training)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """TRL's, with the seconds since the round began or the step before was logged."""
        if "loss" in logs:
            now = time.perf_counter()
            logs, self._since = {**logs, "step_time": now - self._since}, now
        super().log(logs, start_time)

    def _generate(self, rows: list[Row]) -> Rollouts:
        return generate(
            self.accelerator.unwrap_model(self.model),
            self.processing_class,
            rows,
            max_tokens=self.args.max_completion_length,
            temperature=self.args.temperature,
            batch=self.args.per_device_eval_batch_size,
        )

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        folder.mkdir(parents=True, exist_ok=True)
        self._rollout_log.sync()
        state = {"rounds": self._rounds_told, "planner": self.planner.state_dict()}
        save_state(folder / PLANNER_FILE, state, kind=KIND)  # first: what is complete in TRL's eyes has it
        super()._save_checkpoint(model, trial)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            state = load_state(Path(checkpoint) / PLANNER_FILE, kind=KIND, keys=("planner", "rounds"))
            self.planner.load_state_dict(state["planner"], settings="own")
            self._rounds_told = state["rounds"]
            self._rollout_log.resume(self._rounds_told)
