"""A planner in front of TRL's trainers: counts are made just before generation, from all that came back before.

TRL's data loader repeats every prompt ``num_generations`` times. The mixin takes one row of each, asks the planner, and
hands TRL as many copies as the plan says; the number of rows never changes. TRL generates and scores them as ever,
taking the batch for one group; then the advantages are computed anew by group, and the planner is told.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor
from trl import GRPOTrainer, RLOOTrainer

from allotment.errors import ConfigError, RewardMismatchError
from allotment.integrations.trl import advantages
from allotment.integrations.trl.batch import every_nth, lay_out
from allotment.integrations.trl.building import arithmetic, planner_for, selector_for
from allotment.integrations.trl.config import AllotmentArguments
from allotment.integrations.trl.prompts import ROW, PromptIdentity
from allotment.integrations.trl.sketches import ScoreSketch
from allotment.integrations.trl.updating import AdvantagesMixin, OpenBatch
from allotment.integrations.trl.versions import check_methods
from allotment.planning import VIP
from allotment.planning.planner import PLANNER_FILE
from allotment.planning.shortlist import shortlist
from allotment.run_logs.figures import rollout_rows, step_figures
from allotment.run_logs.rollout_log import RolloutLog
from allotment.state import load_state, save_state
from allotment.types import Plan, PromptId

log = logging.getLogger("allotment")

KIND = "trl-planner"


class AllotmentMixin(AdvantagesMixin):
    """In front of ``GRPOTrainer``, ``RLOOTrainer`` or a class derived from one; see :func:`with_allotment`.

    Args:
        args, kwargs: what TRL's trainer takes.
        allotment: settings, where TRL's own config class does not bring them.

    Attributes:
        planner: who decides; on other processes than the main one it learns nothing.

    Raises:
        ConfigError: the planner, the identity column or the candidates do not fit the data set or TRL's batch.
    """

    def __init__(self, *args: Any, allotment: AllotmentArguments | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        own = self.args if isinstance(self.args, AllotmentArguments) else AllotmentArguments()
        settings = own if allotment is None else allotment
        self.allotment = settings
        self._sizes = arithmetic(self.args, settings.candidate_prompts)
        makes_prompts = any(getattr(self, n, None) for n in ("environment_factories", "environment_factory"))
        self._identity = PromptIdentity(self.train_dataset, settings.prompt_id_column, distinct_rows=makes_prompts)
        self.train_dataset: Any = self._identity.dataset
        self._estimator = "rloo" if isinstance(self, RLOOTrainer) else "dr_grpo"
        self.planner = planner_for(
            settings, self._sizes, self._identity, estimator=self._estimator, seed=self.args.seed
        )
        if self.planner.contract.baselines:
            _check_loss(getattr(self, "loss_type", "dr_grpo"))  # RLOOTrainer sums a completion's tokens
        self._selector = selector_for(settings, self.planner, seed=self.args.seed)
        _check_success_reward(settings.success_reward, self.reward_func_names)
        self._threshold = self.planner.success_threshold
        self._sketch = self._new_sketch()
        self._rollout_log = RolloutLog(Path(self.args.output_dir) / "rollouts.jsonl")
        self._open: OpenBatch | None = None
        self._steps_told = 0
        if self.planner_prices_centred_rewards and getattr(self, "scale_rewards", "none") != "none":
            log.warning(
                "scale_rewards=%r divides advantages by a standard deviation; the planner's price is the variance of "
                "undivided ones, as with scale_rewards='none'",
                self.scale_rewards,
            )

    @property
    def planner_prices_centred_rewards(self) -> bool:
        """Whether the planner minimises the variance of advantages that are not divided by a standard deviation."""
        return isinstance(self.planner, VIP)

    def get_train_dataloader(self) -> Any:
        """TRL's, with each candidate repeated so often that the number of rows stays the budget."""
        with self._group_size(self._sizes.repeats):
            return super().get_train_dataloader()

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        wanted = [ROW, self.allotment.prompt_id_column]
        self._signature_columns += [c for c in wanted if c is not None and c not in self._signature_columns]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> Any:
        if not self.model.training:
            return super()._generate_and_score_completions(inputs)
        rows, self._open = self._planned(inputs)
        try:
            with self._group_size(1), self._raw_advantages():
                output = super()._generate_and_score_completions(rows)
            self._close(self._open, output)
        except BaseException:
            self._give_up(self._open.plan)
            raise
        finally:
            self._open = None
        return output

    def _give_up(self, plan: Plan) -> None:
        """Leave the planner as if a plan whose batch failed had never been asked, but for its step number."""
        if self.accelerator.is_main_process:
            with suppress(RewardMismatchError):  # it was told before the error
                self.planner.cancel(plan)

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        rewards_NF: Tensor = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if self._open is not None:
            self._open.rewards_NF = rewards_NF
            self._open.tokens_N = gather_object([len(ids) for ids in completion_ids_list])
            self.num_generations = len(rewards_NF)  # one group of all rows, until the advantages are computed by group
        return rewards_NF

    def _planned(self, inputs: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], OpenBatch]:
        """The rows of a new plan that this process takes, as many as it had."""
        started = time.perf_counter()
        known = [(self._identity.of(row), int(row[ROW]) if ROW in row else row) for row in inputs]
        everyone = gather_object(known)
        ids = every_nth([prompt for prompt, _ in everyone], self._sizes.repeats)
        keys = [key for _, key in everyone[:: self._sizes.repeats]]
        distinct = list(dict.fromkeys(ids))
        plan = self._ask(distinct, len(everyone))
        try:
            least = 2 if plan.baselines is None else 1
            layout = lay_out(ids, plan.prompt_ids, plan.counts.tolist(), len(everyone), least=least)
        except RewardMismatchError:
            self._give_up(plan)
            raise
        local = {int(row[ROW]): row for row in inputs if ROW in row}
        columns = [name for name in inputs[0] if name != ROW]
        rows = []
        for candidate in layout.candidate_N[self._own_rows(len(inputs))]:
            key = keys[candidate]
            row = key if isinstance(key, dict) else local.get(key) or self.train_dataset[key]
            rows.append({name: copy.deepcopy(row[name]) for name in columns})
        return rows, OpenBatch(layout, plan, len(distinct), time.perf_counter() - started)

    def _ask(self, ids: list[PromptId], budget: int) -> Plan:
        """The plan of the main process, on the others without the belief behind it; or its error."""
        answer: list[Any] = [None]
        if self.accelerator.is_main_process:
            try:
                answer = [self.planner.ask(shortlist(self.planner, ids, self._sizes.prompts), budget=budget)]
            except Exception as error:
                answer = [error]  # the other processes wait for an answer
        plan = answer[0]
        sent = [replace(plan, posterior=None, allocation=None) if isinstance(plan, Plan) else plan]
        broadcast_object_list(sent)
        if isinstance(sent[0], Exception):
            raise sent[0]
        return plan if isinstance(plan, Plan) else sent[0]

    def _close(self, batch: OpenBatch, output: dict[str, Any]) -> None:
        """Advantages by group, corrected figures, and what came back to the planner."""
        started = time.perf_counter()
        assert batch.rewards_NF is not None
        group_N = torch.from_numpy(batch.layout.group_N).to(batch.rewards_NF.device)
        rewards_N = advantages.weighted_rewards(batch.rewards_NF, self.reward_weights.to(batch.rewards_NF.device))
        clipped_N = self._clipped(rewards_N)
        advantages_N = self._advantages(batch, clipped_N, group_N, output)
        advantages_N = self._carried_out(batch, clipped_N, advantages_N, output)
        output["advantages"] = advantages_N[self._own_rows(len(output["advantages"]))]
        constant_Q = advantages.constant_groups(clipped_N, group_N)
        self._correct_logs(advantages_N, constant_Q)
        scores_NK = None if self._sketch is None else self._scores(output)
        if self.accelerator.is_main_process:
            dead = constant_Q[group_N].float().mean().item()
            self._tell(batch, rewards_N, scores_NK, dead=dead, started=started)

    def _new_sketch(self) -> ScoreSketch | None:
        """What a planner that prices gradient moments is told beside rewards; None for others."""
        kind = self.allotment.score_sketch
        if "scores" in self.planner.contract.told:
            return ScoreSketch(self.model, kind or "last-block", seed=self.args.seed)
        if kind is None:
            return None
        raise ConfigError(
            "score sketches for a planner that has no use for them",
            got=f"score_sketch={kind!r}, planner {self.planner.name}",
            allowed="a planner that is told scores, such as 'vip-moments', or VIP(price='gradient_moments')",
            fix="leave score_sketch out, or use such a planner",
        )

    def _scores(self, output: dict[str, Any]) -> Tensor:
        """[N, K] sketches of the scores, over all processes; one more forward pass."""
        assert self._sketch is not None
        mask = output["completion_mask"]
        scores: Tensor = self._sketch(
            self.accelerator.unwrap_model(self.model),
            output["prompt_ids"],
            output["prompt_mask"],
            output["completion_ids"],
            mask * output["tool_mask"] if "tool_mask" in output else mask,
            temperature=self.temperature,
            batch_size=self.args.per_device_train_batch_size,
        )
        gathered: Tensor = self.accelerator.gather(scores)
        return gathered

    def _correct_logs(self, advantages_N: Tensor, constant_Q: Tensor) -> None:
        """What TRL logged of the batch as one group."""
        is_grouped = getattr(self, "multi_objective_aggregation", "sum_then_normalize") == "sum_then_normalize"
        if is_grouped and getattr(self, "scale_rewards", "none") != "batch":
            self._metrics["train"]["frac_reward_zero_std"][-1] = constant_Q.float().mean().item()
        logged = self._logs["advantages"]
        for _ in range(len(advantages_N)):
            logged.pop()
        logged.extend(advantages_N.tolist())

    def _tell(
        self, batch: OpenBatch, rewards_N: Tensor, scores_NK: Tensor | None, *, dead: float, started: float
    ) -> None:
        """On the main process: the planner learns, the figures are logged."""
        plan, layout = batch.plan, batch.layout
        assert batch.rewards_NF is not None
        assert batch.tokens_N is not None
        judge = self.allotment.success_reward
        values_N = rewards_N if judge is None else batch.rewards_NF[:, self.reward_func_names.index(judge)]
        scored = values_N.isfinite().nonzero()[:, 0].tolist()
        if not scored:
            self._nothing_scored(plan)
            return
        outcome = self.planner.tell(
            plan,
            values_N[scored].double().cpu().numpy(),
            layout.group_ids(scored),
            scores=None if scores_NK is None else scores_NK[scored].double().cpu().numpy(),
            allow_missing_groups=True,
        )
        figures = step_figures(plan, batch.candidates, outcome, self._threshold, self._estimator)
        figures |= {"tokens": float(sum(batch.tokens_N)), "dead_rollouts": dead}
        figures |= {"seconds": batch.seconds + time.perf_counter() - started}
        for name, value in figures.items():
            self._metrics["train"][f"allotment/{name}"].append(value)
        tokens_G = np.bincount(layout.group_N, batch.tokens_N)
        row_of = {prompt: g for g, prompt in enumerate(layout.prompt_ids)}
        tokens_Q = np.array([tokens_G[row_of[p]] if p in row_of else 0 for p in plan.prompt_ids], dtype=np.int64)
        self._rollout_log.append(rollout_rows(plan, outcome, tokens_Q, self._threshold))
        self._steps_told = plan.step + 1

    def _nothing_scored(self, plan: Plan) -> None:
        """No rollout of the batch has a reward the planner could be told."""
        if not self._steps_told:
            raise ConfigError(
                "no rollout of the first batch has a reward",
                got="None or NaN for every rollout",
                allowed="a number for at least one",
                fix="check the reward function and the columns of the data set it reads",
            )
        self.planner.cancel(plan)
        log.warning("step %d: no rollout has a reward; the planner learns nothing from it", plan.step)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # First the planner: a checkpoint that is complete in TRL's eyes then has it.
        if self.accelerator.is_main_process:
            folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
            folder.mkdir(parents=True, exist_ok=True)
            self._rollout_log.sync()
            state = {"steps": self._steps_told, "planner": self.planner.state_dict()}
            save_state(folder / PLANNER_FILE, state, kind=KIND)
        super()._save_checkpoint(model, trial)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or not self.accelerator.is_main_process:
            return
        if (file := Path(checkpoint) / PLANNER_FILE).exists():
            state = load_state(file, kind=KIND)
            self.planner.load_state_dict(state["planner"])
            self._steps_told = state["steps"]
            self._rollout_log.resume(self._steps_told)
        else:
            log.warning("%s has no %s: the planner starts without a record", checkpoint, PLANNER_FILE)

    @contextmanager
    def _group_size(self, size: int) -> Iterator[None]:
        """TRL's group size for a while; :meth:`_calculate_rewards` may change it meanwhile."""
        before, self.num_generations = self.num_generations, size
        try:
            yield
        finally:
            self.num_generations = before

    @contextmanager
    def _raw_advantages(self) -> Iterator[None]:
        """RLOO's advantages not normalised over the batch for a while; that comes after the grouping."""
        before = getattr(self, "normalize_advantages", None)
        if before is not None:
            self.normalize_advantages = False
        try:
            yield
        finally:
            if before is not None:
                self.normalize_advantages = before

    def _own_rows(self, count: int) -> slice:
        """Where this process's ``count`` rows stand among those of all."""
        first = self.accelerator.process_index * count
        return slice(first, first + count)


class AllotmentGRPOTrainer(AllotmentMixin, GRPOTrainer):
    """TRL's ``GRPOTrainer`` with a number of rollouts for each prompt; configured by ``AllotmentGRPOConfig``."""


class AllotmentRLOOTrainer(AllotmentMixin, RLOOTrainer):
    """TRL's ``RLOOTrainer`` with a number of rollouts for each prompt; configured by ``AllotmentRLOOConfig``."""


def with_allotment(trainer: type) -> type:
    """The same for a class derived from TRL's ``GRPOTrainer`` or ``RLOOTrainer``.

    Settings come from its config, if that is one of Allotment's, else from ``allotment=AllotmentArguments(...)``.

    Raises:
        MissingExtraError: the class lacks a method of TRL's that the adapter works through.
    """
    check_methods(trainer)
    return type(f"Allotment{trainer.__name__}", (AllotmentMixin, trainer), {"__doc__": trainer.__doc__})


def _check_loss(loss_type: str) -> None:
    """Refuse a loss that a belief as baseline would bias; see :func:`allotment.learning.aggregation.check_believed`."""
    if loss_type != "dr_grpo":
        raise ConfigError(
            "the planner's baselines are biased where the loss divides by lengths that depend on the rollouts",
            got=f"loss_type={loss_type!r}",
            allowed="loss_type='dr_grpo', or RLOOTrainer",
            fix="set loss_type='dr_grpo', or use the planner with estimator 'rloo'",
        )


def _check_success_reward(name: str | None, known: list[str]) -> None:
    if name is not None and name not in known:
        raise ConfigError(
            "there is no reward function of that name",
            got=f"success_reward={name!r}",
            allowed=", ".join(known),
            fix="name one of them, or leave success_reward out for their weighted sum",
        )
