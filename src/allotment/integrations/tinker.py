"""Tinker cookbook: a data set whose groups are as large as a planner says, and which tells it what came back.

    train = AllotmentDataset(train, VIP(budget=1024))     # before it is given to tinker_cookbook.rl.train

Groups are ragged by nature there: a builder says how many environments it makes, and advantages are centred in each
group. Needs ``pip install tinker-cookbook``; tested with 0.6.1. The planner is told in the process that fetches the
batches: a builder that is pickled for another one is a plain builder of the planned size.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from tinker_cookbook.rl.types import Env, EnvGroupBuilder, Metrics, RLDataset, Trajectory

from allotment.errors import ConfigError
from allotment.integrations.capabilities import GENERIC
from allotment.integrations.carrying import Weighting, ask, prompt_factors
from allotment.integrations.generic import counts_of
from allotment.planning import Planner
from allotment.planning.contract import check_planner
from allotment.types import Plan, PromptId

log = logging.getLogger("allotment")

TINKER = replace(GENERIC, name="allotment.integrations.tinker", baselines=False, told=frozenset())
"""The cookbook centres a group's rewards itself; weights of prompts are factors of these rewards."""


@dataclass(eq=False)
class _Open:
    """A batch whose groups are coming back."""

    plan: Plan
    waiting: set[PromptId]
    scale_of: dict[PromptId, float]
    """What rewards are multiplied with, for every prompt to have the weight that is meant."""


class AllotmentDataset(RLDataset):  # type: ignore[misc]
    """A number of rollouts for each prompt.

    Args:
        dataset: whose builders are dataclasses with a field ``num_envs``, as ``ProblemGroupBuilder``.
        planner: its budget is rollouts of a batch; save and load it beside the cookbook's checkpoints.
        prompt_id: names the prompt of a builder; its place in the data set, ``batch/row``, if None.
        weighting: the cookbook sums over rollouts, so a prompt would pull with its count. ``"prompt"`` multiplies a
            group's total rewards by mean(n) / n, also in the cookbook's figures of them; ``"rollout"`` does not.
        patience: batches fetched later, after which one is closed with what came back for it.

    Raises:
        ConfigError: the planner needs more than this carries out, such as baselines or several rounds.
    """

    def __init__(
        self,
        dataset: RLDataset,
        planner: Planner,
        *,
        prompt_id: Callable[[EnvGroupBuilder], PromptId] | None = None,
        weighting: Weighting = "prompt",
        patience: int = 8,
    ) -> None:
        check_planner(planner, TINKER)
        self.dataset, self.planner = dataset, planner
        self._prompt_id, self._weighting, self._patience = prompt_id, weighting, patience
        self._open: list[_Open] = []

    def __len__(self) -> int:
        """Batches of the data set."""
        return len(self.dataset)

    def get_batch(self, index: int) -> Sequence[EnvGroupBuilder]:
        """The batch's builders, each with its number of environments; those with 0 are left out.

        Raises:
            ConfigError: a builder has no ``num_envs`` to set.
        """
        while len(self._open) >= self._patience:
            self._close(self._open[0])
        builders = self.dataset.get_batch(index)
        named = self._prompt_id
        ids = [f"{index}/{row}" if named is None else named(builder) for row, builder in enumerate(builders)]
        asked = ask(self.planner, ids)
        count_of = {prompt: count for prompt, count in zip(ids, counts_of(asked, ids), strict=True) if count}
        scale = _scales(asked, count_of, self._weighting)
        batch = _Open(asked, set(count_of), scale)
        self._open.append(batch)
        kept = [(prompt, builder) for prompt, builder in zip(ids, builders, strict=True) if prompt in count_of]
        return [_Told(_resized(b, count_of[prompt]), partial(self._tell, batch, prompt)) for prompt, b in kept]

    def _tell(self, batch: _Open, prompt: PromptId, totals: list[float]) -> float:
        """Take in one group's total rewards, the first time; return what they are multiplied with."""
        if prompt in batch.waiting and batch in self._open:
            self.planner.tell(batch.plan, totals, [prompt] * len(totals), final=False)
            batch.waiting.discard(prompt)
            if not batch.waiting:
                self._close(batch)
        return batch.scale_of[prompt]

    def _close(self, batch: _Open) -> None:
        self._open.remove(batch)
        if len(batch.waiting) == len(batch.scale_of):
            self.planner.cancel(batch.plan)
            log.warning("nothing came back for a batch of %d rollouts", batch.plan.budget)
        else:
            self.planner.tell(batch.plan, [], [], allow_missing_groups=True)


class _Told(EnvGroupBuilder):  # type: ignore[misc]
    """A builder that reports the total rewards of its group."""

    def __init__(self, builder: EnvGroupBuilder, tell: Callable[[list[float]], float]) -> None:
        self.builder, self._tell = builder, tell

    def __reduce__(self) -> Any:
        return copy.copy, (self.builder,)

    async def make_envs(self) -> Sequence[Env]:
        """The builder's environments."""
        return await self.builder.make_envs()  # type: ignore[no-any-return]

    async def compute_group_rewards(
        self, trajectory_group: list[Trajectory], env_group: Sequence[Env]
    ) -> list[tuple[float, Metrics]]:
        """The builder's rewards of the group, such that totals are in proportion to the prompt's weight."""
        own = await self.builder.compute_group_rewards(trajectory_group, env_group)
        steps = [sum(transition.reward for transition in t.transitions) for t in trajectory_group]
        totals = [step + reward for step, (reward, _) in zip(steps, own, strict=True)]
        scale = self._tell(totals)
        return [(scale * t - step, metrics) for t, step, (_, metrics) in zip(totals, steps, own, strict=True)]

    async def cleanup(self) -> None:
        await self.builder.cleanup()

    def logging_tags(self) -> list[str]:
        return list(self.builder.logging_tags())


def _scales(asked: Plan, count_of: dict[PromptId, int], weighting: Weighting) -> dict[PromptId, float]:
    """What the rewards of each prompt with rollouts are multiplied with."""
    mean, factors_Q = asked.budget / max(len(count_of), 1), prompt_factors(asked, tuple(count_of))
    shares = [mean / count if weighting == "prompt" else 1.0 for count in count_of.values()]
    factors = [1.0] * len(count_of) if factors_Q is None else factors_Q.tolist()
    return {prompt: share * factor for prompt, share, factor in zip(count_of, shares, factors, strict=True)}


def _resized(builder: Any, count: int) -> EnvGroupBuilder:
    if "num_envs" not in getattr(builder, "__dataclass_fields__", {}):
        raise ConfigError(
            "the size of a group cannot be set",
            got=f"a builder {type(builder).__name__}",
            allowed="a dataclass with a field num_envs, such as ProblemGroupBuilder",
            fix="give the builder such a field",
        )
    resized: EnvGroupBuilder = replace(builder, num_envs=count)
    return resized
