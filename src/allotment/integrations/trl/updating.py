"""The advantages of a batch: TRL's arithmetic by group, with what the plan and a selection say of each rollout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from accelerate.utils import gather_object
from torch import Tensor
from trl import RLOOTrainer

from allotment.integrations.carrying import (
    Batch,
    of_prompts,
    prompt_factors,
    row_factors,
    selected,
    selected_advantages,
)
from allotment.integrations.trl import advantages
from allotment.integrations.trl.batch import Layout
from allotment.integrations.trl.config import AllotmentArguments
from allotment.integrations.trl.versions import scores_none_as_zero
from allotment.selection import Selector
from allotment.types import FloatArray, Plan

if TYPE_CHECKING:
    _Trainer: TypeAlias = Any  # whatever class the mixin stands in front of
else:
    _Trainer = object


@dataclass(eq=False)
class OpenBatch:
    """A generation batch under way."""

    layout: Layout
    plan: Plan
    """Without the belief behind it on other processes than the main one."""
    copies_Q: FloatArray | None
    """[Q] how often each prompt with rollouts stands in the batch of the data loader, relative to the mean over the
    prompts that the loss is a mean over; None where each stands once."""
    candidates: int
    """Distinct prompts that could have been planned for."""
    seconds: float
    """Spent on planning so far."""
    rewards_NF: Tensor | None = None
    """[N, F] what each reward function said, over all processes."""
    tokens_N: list[int] | None = None
    """[N] completion tokens, over all processes."""
    rewards_N: Tensor | None = None
    """[N] their weighted sum; None before the advantages are computed."""
    constant_Q: Tensor | None = None
    """[Q] whether a prompt's rewards are all equal."""


class GroupScoring(_Trainer):
    """Right in front of TRL's own class, behind classes derived from it: what they see are advantages by group."""

    allotment: AllotmentArguments
    num_generations: int
    _selector: Selector | None
    _open: OpenBatch | None

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> Any:
        batch = self._open
        if batch is None:
            return super()._generate_and_score_completions(inputs)
        with self._group_size(batch.layout.divisor), self._raw_advantages():
            output = super()._generate_and_score_completions(inputs)
        self._score(batch, output)
        return output

    def _score(self, batch: OpenBatch, output: dict[str, Any]) -> None:
        """Advantages by group in ``output``, and the figures that TRL logged of the batch as one group corrected."""
        assert batch.rewards_NF is not None
        group_N = torch.from_numpy(batch.layout.group_N).to(batch.rewards_NF.device)
        weights_F = self.reward_weights.to(batch.rewards_NF.device)
        batch.rewards_N = advantages.weighted_rewards(batch.rewards_NF, weights_F)
        clipped_N = self._clipped(batch.rewards_N)
        advantages_N = self._advantages(batch, clipped_N, group_N, output)
        advantages_N = self._carried_out(batch, clipped_N, advantages_N, output)
        output["advantages"] = advantages_N[self._own_rows(len(output["advantages"]))]
        batch.constant_Q = advantages.constant_groups(clipped_N, group_N)
        self._correct_logs(advantages_N, batch.constant_Q)

    def _correct_logs(self, advantages_N: Tensor, constant_Q: Tensor) -> None:
        is_grouped = getattr(self, "multi_objective_aggregation", "sum_then_normalize") == "sum_then_normalize"
        if is_grouped and getattr(self, "scale_rewards", "none") != "batch":
            self._metrics["train"]["frac_reward_zero_std"][-1] = constant_Q.float().mean().item()
        logged = self._logs["advantages"]
        for _ in range(len(advantages_N)):
            logged.pop()
        logged.extend(advantages_N.tolist())

    def _carried_out(self, batch: OpenBatch, rewards_N: Tensor, advantages_N: Tensor, output: dict[str, Any]) -> Tensor:
        """[N] advantages with the weights of prompts, and of a selection, in them."""
        layout, weighting = batch.layout, self.allotment.prompt_weighting
        factors_Q = prompt_factors(batch.plan, layout.prompt_ids)
        if batch.copies_Q is not None and weighting == "prompt":
            factors_Q = batch.copies_Q if factors_Q is None else factors_Q * batch.copies_Q
        if self._selector is None:
            group_N = torch.from_numpy(layout.group_N).to(advantages_N.device)
            weighted_N = advantages_N * advantages.prompt_weights(group_N, weighting)
        else:
            weighted_N = self._selected(batch, rewards_N, advantages_N, output)
        if factors_Q is None:
            return weighted_N
        return weighted_N * torch.from_numpy(factors_Q[layout.group_N]).to(weighted_N)

    def _selected(self, batch: OpenBatch, rewards_N: Tensor, advantages_N: Tensor, output: dict[str, Any]) -> Tensor:
        """[N] advantages of the rollouts that the selector keeps, weighted; 0 for the others and the unscored."""
        assert self._selector is not None
        assert batch.tokens_N is not None
        layout, step = batch.layout, batch.plan.step
        scored_S = rewards_N.isfinite().nonzero()[:, 0].cpu().numpy()
        rollouts = Batch(
            layout.prompt_ids,
            layout.group_N[scored_S],
            rewards_N.double().cpu().numpy()[scored_S],
            advantages_N.double().cpu().numpy()[scored_S],
            np.array(batch.tokens_N)[scored_S],
            self._truncated(output)[scored_S],
        )
        progress = self.state.global_step / max(self.state.max_steps, 1)
        kept = selected(self._selector, rollouts, step=step, first_number=step * len(rewards_N), progress=progress)

        def estimate(rewards_S: FloatArray, among_S: npt.NDArray[np.bool_]) -> FloatArray:
            some_N = torch.full_like(rewards_N, torch.nan)
            some_N[scored_S[among_S]] = torch.from_numpy(rewards_S[among_S]).to(some_N)
            group_N = torch.from_numpy(layout.group_N).to(some_N.device)
            estimated_N = self._advantages(batch, some_N, group_N, output)
            return np.asarray(estimated_N.double().cpu().numpy()[scored_S], dtype=np.float64)

        own_S = selected_advantages(kept, rollouts, estimate)
        factors_S = row_factors(rollouts.group_N, self.allotment.prompt_weighting, kept)
        result_N = torch.zeros_like(advantages_N)
        result_N[scored_S] = torch.from_numpy(own_S * factors_S).to(result_N)
        return result_N

    def _truncated(self, output: dict[str, Any]) -> npt.NDArray[np.bool_]:
        """[N] whether each rollout was cut at the length limit, over all processes."""
        tokenizer: Any = getattr(self.processing_class, "tokenizer", self.processing_class)
        last_n1 = output["completion_mask"].sum(1, keepdim=True).clamp(min=1) - 1
        last_n = output["completion_ids"].gather(1, last_n1)[:, 0].tolist()
        ends = (tokenizer.eos_token_id, tokenizer.pad_token_id)
        return np.array(gather_object([token not in ends for token in last_n]), dtype=np.bool_)

    def _advantages(self, batch: OpenBatch, rewards_N: Tensor, group_N: Tensor, output: dict[str, Any]) -> Tensor:
        """[N] over all processes, before weighting."""
        assert batch.rewards_NF is not None
        rewards_NF, plan = batch.rewards_NF, batch.plan
        if plan.baselines is not None:
            shares_Q = np.ones(len(plan.prompt_ids)) if plan.baseline_shares is None else plan.baseline_shares
            beliefs = [of_prompts(plan, v, batch.layout.prompt_ids) for v in (plan.baselines, shares_Q)]
            return advantages.believed_advantages(rewards_N, group_N, *beliefs)
        if isinstance(self, RLOOTrainer) and not (self.beta and self._metrics["train"]["kl"][-1]):
            # No penalty, as before the first update: with the rewards themselves a dead group has advantage 0, of
            # which Adam would make a step where it is a rounding.
            return advantages.rloo_advantages(rewards_N, group_N, normalize=self.args.normalize_advantages)
        if isinstance(self, RLOOTrainer):
            # With the batch as one group TRL gave n / (n - 1) (r - mean r); r has the KL penalty, which TRL keeps to
            # itself. A constant does not matter.
            scored_N = ~rewards_N.isnan()
            n = len(scored_N) if scores_none_as_zero() else scored_N.sum()
            share = (n - 1) / n
            penalised_N = (self.accelerator.gather(output["advantages"]) * share).masked_fill(~scored_N, torch.nan)
            return advantages.rloo_advantages(penalised_N, group_N, normalize=self.args.normalize_advantages)
        if getattr(self, "multi_objective_aggregation", "sum_then_normalize") == "normalize_then_sum":
            return advantages.gdpo_advantages(rewards_NF, self.reward_weights.to(rewards_NF.device), group_N)
        return advantages.grpo_advantages(rewards_N, group_N, self.scale_rewards)

    def _clipped(self, rewards_N: Tensor) -> Tensor:
        """[N] the rewards as RLOO clips them, if it is told to."""
        bounds = getattr(self, "reward_clip_range", None)
        return rewards_N.clamp(*bounds) if bounds else rewards_N

    @contextmanager
    def _group_size(self, size: int) -> Iterator[None]:
        """TRL's group size for a while, where samplers and rollout functions look for it too.

        ``AllotmentMixin._calculate_rewards`` changes it meanwhile.
        """
        before = self.num_generations, self.args.num_generations
        self.num_generations = self.args.num_generations = size
        try:
            yield
        finally:
            self.num_generations, self.args.num_generations = before

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
