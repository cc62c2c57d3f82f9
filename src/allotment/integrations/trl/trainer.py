"""A planner in front of TRL's trainers: counts are made just before generation, from all that came back before.

TRL's data loader repeats every prompt ``num_generations`` times. The mixin takes one row of each, asks the planner, and
hands TRL as many copies as the plan says; the number of rows never changes. TRL generates and scores them as ever,
taking the batch for one group; then :mod:`~allotment.integrations.trl.updating` computes the advantages anew by group,
and, when classes derived from TRL's have done their part, the planner is told.
"""

from __future__ import annotations

import logging
import time
from contextlib import nullcontext, suppress
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset
from torch import Tensor
from trl import GRPOTrainer, RLOOTrainer

from allotment.errors import ConfigError, RewardMismatchError
from allotment.integrations.trl import checks, ragged
from allotment.integrations.trl.batch import apart, copies, every_nth, lay_out, row_copies
from allotment.integrations.trl.building import arithmetic, planner_for, selector_for
from allotment.integrations.trl.config import AllotmentArguments
from allotment.integrations.trl.prompts import PromptIdentity
from allotment.integrations.trl.rows import ROW, NumberedRows, places_of
from allotment.integrations.trl.sketches import ScoreSketch
from allotment.integrations.trl.updating import GroupScoring, OpenBatch
from allotment.integrations.trl.versions import check_methods
from allotment.planning import VIP, Planner, Uniform
from allotment.planning.planner import PLANNER_FILE
from allotment.planning.shortlist import shortlist
from allotment.prompts.contents import content_hash
from allotment.run_logs.figures import rollout_rows, step_figures
from allotment.run_logs.one_writer import TRAINER_LOCK, one_writer
from allotment.run_logs.rollout_log import RolloutLog
from allotment.selection import Selector
from allotment.state import load_state, save_state
from allotment.types import Plan, PromptId

if TYPE_CHECKING:
    _Trainer: TypeAlias = Any  # whatever class the mixin stands in front of
else:
    _Trainer = object

log = logging.getLogger("allotment")

KIND = "trl-planner"


class AllotmentMixin(_Trainer):
    """In front of ``GRPOTrainer``, ``RLOOTrainer`` or a class derived from one; see :func:`with_allotment`.

    Args:
        args, kwargs: what TRL's trainer takes.
        allotment: settings, where TRL's own config class does not bring them.

    Attributes:
        planner: who decides; on other processes than the main one it learns nothing.

    Raises:
        ConfigError: the planner, the identity column or the candidates do not fit the data set or TRL's batch.
        InvalidInputError: a prompt id is neither int nor str, or stands for two different prompts.
    """

    planner: Planner
    allotment: AllotmentArguments
    num_generations: int
    train_dataset: Any
    _selector: Selector | None

    def __init__(self, *args: Any, allotment: AllotmentArguments | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        own = self.args if isinstance(self.args, AllotmentArguments) else AllotmentArguments()
        settings = own if allotment is None else allotment
        self.allotment = settings
        self._sizes = arithmetic(self.args, settings.candidate_prompts)
        makes_prompts = any(getattr(self, n, None) for n in ("environment_factories", "environment_factory"))
        self._identity = PromptIdentity(self.train_dataset, settings.prompt_id_column, makes_prompts=makes_prompts)
        self._estimator = "rloo" if isinstance(self, RLOOTrainer) else "dr_grpo"
        self.planner = planner_for(
            settings, self._sizes, self._identity, estimator=self._estimator, seed=self.args.seed
        )
        if self.planner.contract.baselines:
            checks.check_loss(getattr(self, "loss_type", "dr_grpo"))  # RLOOTrainer sums a completion's tokens
        self._selector = selector_for(settings, self.planner, seed=self.args.seed)
        checks.check_success_reward(settings.success_reward, self.reward_func_names)
        self._threshold = self.planner.success_threshold
        self._sketch = self._new_sketch()
        self._rollout_log = RolloutLog(Path(self.args.output_dir) / "rollouts.jsonl")
        self._open: OpenBatch | None = None
        self._rows: NumberedRows | None = None
        self._takes_group_ids = any(ragged.names(f, ragged.GROUP_IDS) for f in self.reward_funcs)
        self._chunking = ragged.chunking(self.reward_funcs, type(self))
        self._steps_told = 0
        checks.warn_of_nothing_to_allocate(self.planner, self._sizes)
        if self.planner_prices_centred_rewards and getattr(self, "scale_rewards", "none") != "none":
            log.warning(
                "scale_rewards=%r divides advantages by a standard deviation; the planner's price is the variance of "
                "undivided ones, as with scale_rewards='none'",
                self.scale_rewards,
            )

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """TRL's. Raises RunDirectoryError: another process trains into ``output_dir``."""
        is_main = self.accelerator.is_main_process
        with one_writer(self._rollout_log.path.parent, lock=TRAINER_LOCK) if is_main else nullcontext():
            return super().train(*args, **kwargs)

    @property
    def planner_prices_centred_rewards(self) -> bool:
        """Whether the planner minimises the variance of advantages that are not divided by a standard deviation."""
        return isinstance(self.planner, VIP)

    def get_train_dataloader(self) -> Any:
        """TRL's, with each candidate repeated so often that the number of rows stays the budget, and with its place."""
        own = self.train_dataset
        if isinstance(own, Dataset):
            self._rows = NumberedRows(self._remove_unused_columns(own, description="training"))
        try:
            self.train_dataset = own if self._rows is None else self._rows
            with self._group_size(self._sizes.repeats):
                return super().get_train_dataloader()
        finally:
            self.train_dataset = own

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        wanted = [ROW, self.allotment.prompt_id_column]
        self._signature_columns += [c for c in wanted if c is not None and c not in self._signature_columns]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> Any:
        if not self.model.training:
            return super()._generate_and_score_completions(self._evaluated(inputs))
        rows, batch = self._planned(inputs)
        self._open = batch
        has_own_rollouts = getattr(self, "rollout_func", None) is not None
        try:
            prompts = [content_hash(row.get("prompt")) for row in rows] if has_own_rollouts else []
            output = super()._generate_and_score_completions(rows)
            ragged.check_scored(batch, type(self))
            if has_own_rollouts:
                ragged.check_prompts_returned(output, prompts)
            self._close(batch, output)
        except BaseException:
            self._give_up(batch.plan)
            raise
        finally:
            self._open = None
        return output

    def _evaluated(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Rows of an evaluation, with the number of their group for reward functions that name it."""
        if not self._takes_group_ids:
            return inputs
        size = getattr(self, "num_generations_eval", None) or self.num_generations
        return [{ragged.GROUP_IDS: i // size, **row} for i, row in enumerate(inputs)]

    def _give_up(self, plan: Plan) -> None:
        """Leave the planner as if a plan whose batch failed had never been asked, but for its step number."""
        if self.accelerator.is_main_process:
            with suppress(RewardMismatchError):  # it was told before the error
                self.planner.cancel(plan)

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        batch = self._open
        if batch is not None and self._log_counts:
            own = batch.layout.group_N[self._own_rows(len(prompts))]
            self._log_completion_extra("rollouts_of_prompt", batch.layout.sizes[own].tolist())
        rewards_NF: Tensor = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if batch is not None:
            batch.rewards_NF = rewards_NF
            batch.tokens_N = gather_object([len(ids) for ids in completion_ids_list])
            self.num_generations = len(rewards_NF)  # one group of all rows, until the advantages are computed by group
        return rewards_NF

    @property
    def _log_counts(self) -> bool:
        """Whether TRL writes a table of completions that takes a column."""
        return bool(getattr(self, "log_completions", False)) and hasattr(self, "_log_completion_extra")

    def _planned(self, inputs: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], OpenBatch]:
        """The rows of a new plan that this process takes, as many as it had."""
        started = time.perf_counter()
        places = places_of(inputs)
        prompts = self._identity.of(inputs) if places is None else self._identity.at(places)
        everyone = gather_object(list(zip(prompts, inputs if places is None else places, strict=True)))
        every_nth(everyone if places else [prompt for prompt, _ in everyone], self._sizes.repeats)
        candidates = everyone[:: self._sizes.repeats]
        if places:
            ragged.check_drawn([place for _, place in candidates], self._sizes.repeats)
        ids = [prompt for prompt, _ in candidates]
        ids = apart(ids) if isinstance(self.planner, Uniform) else ids  # each has its own group, as in TRL
        distinct = list(dict.fromkeys(ids))
        plan = self._ask(distinct, len(everyone))
        try:
            least = 2 if plan.baselines is None else 1
            layout = lay_out(ids, plan.prompt_ids, plan.counts.tolist(), len(everyone), least=least)
        except RewardMismatchError:
            self._give_up(plan)
            raise
        self._warn_of_chunks(layout.divisor)
        own = self._own_rows(len(inputs))
        local = dict(zip(places or (), inputs, strict=False))
        columns = [name for name in inputs[0] if name != ROW]
        rows = self._rows_of(local, columns, [key for _, key in candidates], layout.candidate_N[own].tolist())
        if self._takes_group_ids:
            rows = [{ragged.GROUP_IDS: int(g), **row} for row, g in zip(rows, layout.group_N[own], strict=True)]
        factors_Q = copies(ids, plan, layout.prompt_ids)
        return rows, OpenBatch(layout, plan, factors_Q, len(distinct), time.perf_counter() - started)

    def _rows_of(
        self, local: dict[int, dict[str, Any]], columns: list[str], keys: list[Any], taken: list[int]
    ) -> list[dict[str, Any]]:
        """A row with these columns for each candidate taken.

        ``keys``: of the candidates, rows themselves or places in the data set. ``local``: rows at hand by place.
        """
        rows: list[dict[str, Any]] = []
        for candidate, same in groupby(taken):
            key = keys[candidate]
            row = key if isinstance(key, dict) else local.get(key) or cast(NumberedRows, self._rows)[key]
            rows += row_copies(row, columns, len(list(same)))
        return rows

    def _warn_of_chunks(self, divisor: int) -> None:
        """Once, at the first batch that is not blocks of ``num_generations``."""
        if self._chunking and divisor % self.num_generations:
            log.warning(
                "%s read num_generations, and groups are not of that size: their rewards or advantages may mix "
                "prompts. A reward function is told the groups if it names the argument %s; planner='uniform' keeps "
                "groups equal",
                ", ".join(self._chunking),
                ragged.GROUP_IDS,
            )
            self._chunking = []

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
        """What came back to the planner, and to the log."""
        started = time.perf_counter()
        assert batch.rewards_N is not None
        assert batch.constant_Q is not None
        scores_NK = None if self._sketch is None else self._scores(output)
        if self.accelerator.is_main_process:
            dead = batch.constant_Q[batch.layout.group_N].float().mean().item()
            self._tell(batch, batch.rewards_N, scores_NK, dead=dead, started=started)

    def _new_sketch(self) -> ScoreSketch | None:
        """What a planner that prices gradient moments is told beside rewards; None for others."""
        kind = self.allotment.score_sketch
        if "scores" in self.planner.contract.told:
            checks.check_whole_parameters(self.accelerator)
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

    def _tell(
        self, batch: OpenBatch, rewards_N: Tensor, scores_NK: Tensor | None, *, dead: float, started: float
    ) -> None:
        """On the main process: the planner learns, the figures are logged."""
        plan, layout = batch.plan, batch.layout
        assert batch.rewards_NF is not None
        assert batch.tokens_N is not None
        judge = self.allotment.success_reward
        values_N = rewards_N if judge is None else batch.rewards_NF[:, self.reward_func_names.index(judge)]
        scored_N = values_N.isfinite()
        scored, values_n = scored_N.nonzero()[:, 0].tolist(), values_N[scored_N].double().cpu().numpy()
        if not scored:
            self._nothing_scored(plan)
            return
        if not self._steps_told:
            checks.warn_of_rewards(values_n.tolist(), self.planner, self.allotment)
        outcome = self.planner.tell(
            plan,
            values_n,
            layout.group_ids(scored),
            scores=None if scores_NK is None else scores_NK[scored_N].double().cpu().numpy(),
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
            state = load_state(file, kind=KIND, keys=("planner", "steps"))
            self.planner.load_state_dict(state["planner"], settings="own")
            self._steps_told = state["steps"]
            self._rollout_log.resume(self._steps_told)
        else:
            log.warning("%s has no %s: the planner starts without a record", checkpoint, PLANNER_FILE)


class AllotmentGRPOTrainer(AllotmentMixin, GroupScoring, GRPOTrainer):
    """TRL's ``GRPOTrainer`` with a number of rollouts for each prompt; configured by ``AllotmentGRPOConfig``."""


class AllotmentRLOOTrainer(AllotmentMixin, GroupScoring, RLOOTrainer):
    """TRL's ``RLOOTrainer`` with a number of rollouts for each prompt; configured by ``AllotmentRLOOConfig``."""


def with_allotment(trainer: type) -> type[AllotmentMixin]:
    """The same for a class derived from TRL's ``GRPOTrainer`` or ``RLOOTrainer``.

    What the class does to the advantages after TRL's scoring is done to those by group, and stays. Settings come from
    its config, if that is one of Allotment's, else from ``allotment=AllotmentArguments(...)``.

    Raises:
        MissingExtraError: the class lacks a method of TRL's that the adapter works through.
    """
    check_methods(trainer)
    base = next((cls for cls in (GRPOTrainer, RLOOTrainer) if issubclass(trainer, cls)), trainer)
    scoring = type(f"GroupScoring{base.__name__}", (GroupScoring, base), {})
    parents = (AllotmentMixin, scoring) if trainer is base else (AllotmentMixin, trainer, scoring)
    return type(f"Allotment{trainer.__name__}", parents, {"__doc__": trainer.__doc__})
