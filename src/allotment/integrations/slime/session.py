"""What one training run knows: its planner, the plans whose rollouts are coming back, its log. Nothing of slime's.

A batch is planned in :meth:`Session.plan`, by the data source; what came back is told in :meth:`Session.told`, by the
reward hook. Groups go by slime's group index, never by their place.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from allotment.errors import ConfigError, InvalidInputError
from allotment.integrations import carrying
from allotment.integrations.advantages import group_terms, weighted
from allotment.integrations.generic import counts_of
from allotment.integrations.slime.batches import layers, merged, of_whole_plans, share
from allotment.integrations.slime.rewards import Rollouts, group_rewards, pass_rates, told_rewards
from allotment.integrations.slime.settings import Batch, Settings, priced_estimator
from allotment.planning import Outcome, Planner
from allotment.planning.success import SuccessPlanner
from allotment.run_logs.figures import rollout_rows, step_figures
from allotment.run_logs.rollout_log import RolloutLog
from allotment.state import load_state
from allotment.types import FloatArray, Plan, PromptId

log = logging.getLogger("allotment")

MOST_AHEAD = 2
"""Batches that may be planned before anything of them is told."""
PATIENCE = 16
"""Batches told later, after which a plan is closed with what came back for it."""


@dataclass(eq=False)
class UnderWay:
    """A plan whose rollouts are coming back."""

    plan: Plan
    asked_at: int
    """Batch of the request."""
    candidates: int
    """Distinct prompts that could have been planned for."""
    waiting: dict[int, PromptId]
    """Group index of each group that has not come back, and its prompt."""
    tokens: dict[PromptId, int] = field(default_factory=dict)
    """Response tokens of each prompt so far."""


class Session:
    """Counts for the prompts that slime fetches, and what came back for them to the planner.

    Args:
        planner: who decides; checked before.
        settings: the block ``allotment``.
        batch: sizes of a step.
        std: whether slime divides rewards by their standard deviation.
        folder: where ``rollouts.jsonl`` goes; None for no log.
    """

    def __init__(self, planner: Planner, settings: Settings, batch: Batch, *, std: bool, folder: Path | None) -> None:
        self.planner, self.settings, self.batch, self._std = planner, settings, batch, std
        self._log = None if folder is None else RolloutLog(folder / "rollouts.jsonl", alone=True)
        self._open: list[UnderWay] = []
        self._of_group: dict[int, tuple[UnderWay, PromptId]] = {}
        self._ahead = 0
        self.told_batches = 0
        """Batches that were told, those of the run that is resumed among them: slime's rollout id of the next."""

    def plan(self, keys: Sequence[PromptId], groups: Sequence[int], *, budget: int, trained: int) -> list[int]:
        """[Q] rollouts of each row: 0, or 2 and more; 1 too where the planner has baselines.

        Args:
            keys: [Q] prompt ids. Where all are trained on, one that stands twice is planned for twice; among
                candidates it counts once, unless too few of them are distinct.
            groups: [Q] slime's group index of each row.
            budget: rollouts of these rows.
            trained: rows that get rollouts.

        Raises:
            ConfigError: nothing was told of the batches before.
        """
        self._check_ahead()
        opened: list[UnderWay] = []
        count_of = dict.fromkeys(groups, 0)
        try:
            for layer in layers(keys, groups, once=trained < len(keys) and trained <= len(set(keys))):
                if not (kept := min(trained, len(layer))):
                    break
                part = share(budget - sum(count_of.values()), trained, kept, self.planner.bounds)
                trained -= kept
                asked = carrying.ask(self.planner, list(layer), budget=part, trained_prompts=kept)
                counts = dict(zip(layer.values(), counts_of(asked, layer), strict=True))
                waiting = {group: key for key, group in layer.items() if counts[group]}
                opened.append(UnderWay(asked, self.told_batches, len(layer), waiting))
                count_of |= counts
        except BaseException:
            for entry in opened:
                self.planner.cancel(entry.plan)
            raise
        self._open += opened
        self._of_group |= {group: (entry, key) for entry in opened for group, key in entry.waiting.items()}
        self._ahead += 1
        return [count_of[group] for group in groups]

    def is_open(self, group: int | None) -> bool:
        """Whether rollouts of a group are waited for."""
        return group is not None and group in self._of_group

    def count_of(self, group: int) -> int:
        """Rollouts that were asked of a group."""
        entry, key = self._of_group[group]
        return counts_of(entry.plan, [key])[0]

    def told(self, rollouts: Rollouts, held: Iterable[int] = ()) -> tuple[FloatArray, dict[str, float]]:
        """Take in what came back.

        Args:
            rollouts: all that slime trains on in this step.
            held: groups that are not among them and will still come.

        Returns:
            [N] what slime trains on in place of the rewards, and figures of the step by name.

        Raises:
            InvalidInputError: a rollout belongs to no open group.
            RewardMismatchError: a group has more rollouts than were asked for.
        """
        groups = tuple(dict.fromkeys(rollouts.groups))
        self._check_known(groups)
        number = {group: row for row, group in enumerate(groups)}
        group_N = np.array([number[group] for group in rollouts.groups], dtype=np.int64)
        keys = [self._of_group[group][1] for group in groups]
        plans = [self._of_group[group][0].plan for group in groups]
        terms = group_terms(keys, plans)
        terms.factors_Q[:] *= of_whole_plans(plans)
        inside_N = group_rewards(rollouts.rewards_N, group_N, terms, self.settings.estimator, self._std)
        advantages_N = weighted(inside_N, group_N, self.settings.prompt_weighting) * terms.factors_Q[group_N]
        told_N = self._record(rollouts)
        figures = pass_rates(told_N >= self._threshold(), group_N, self.batch.mean)
        self._ahead, self.told_batches = 0, self.told_batches + 1
        closed = self._close_due(set(held))
        return advantages_N, {f"passrate/{k}": v for k, v in figures.items()} | closed

    def save(self, path: Path) -> None:
        """Write the planner, atomically; the log is on disk before it."""
        if self._open:
            log.warning(
                "%d plans whose rollouts are not all back are not saved, as slime's own buffer", len(self._open)
            )
        if self._log is not None:
            self._log.sync()
        path.parent.mkdir(parents=True, exist_ok=True)
        self.planner.save(path)

    def load(self, path: Path, batches: int) -> None:
        """Go on after ``batches`` batches with a saved planner; a file that is not there is warned of.

        Budget, bounds, estimator and seed may be others than those that were saved with: the beliefs are kept.

        Raises:
            StateError: the file is damaged, or of another planner.
        """
        self.told_batches = batches
        if not path.exists():
            log.warning("there is no %s: the planner starts without a record", path)
            return
        self.planner.load_state_dict(load_state(path, kind="planner"), settings="own")
        for plan in self.planner.open_plans:
            self.planner.cancel(plan)
        self._open, self._of_group, self._ahead = [], {}, 0
        if self._log is not None:
            self._log.resume(batches)

    def _record(self, rollouts: Rollouts) -> FloatArray:
        """[N] what the planner is told, plan by plan; all of it or nothing."""
        told_N = self._told_of(rollouts)
        rows_of: dict[int, list[int]] = {}
        for row, group in enumerate(rollouts.groups):
            rows_of.setdefault(group, []).append(row)
        for group, rows in rows_of.items():
            self._check_size(group, len(rows))
        measures = "lengths" in self.planner.contract.told
        for group, rows in rows_of.items():
            entry, key = self._of_group.pop(group)
            lengths = rollouts.lengths_N[rows]
            more: dict[str, Any] = {"lengths": lengths} if measures else {}
            self.planner.tell(entry.plan, told_N[rows], [key] * len(rows), final=False, **more)
            entry.tokens[key] = entry.tokens.get(key, 0) + int(lengths.sum())
            del entry.waiting[group]
        return told_N

    def _told_of(self, rollouts: Rollouts) -> FloatArray:
        """[N] success where the reward says it, to a planner that learns from successes alone; else the reward."""
        if not isinstance(self.planner, SuccessPlanner) or self.planner.contract.baselines:
            return rollouts.rewards_N
        if not 0 < (threshold := self._threshold()) <= 1 and not np.isnan(rollouts.successes_N).all():
            raise ConfigError(
                "a success of 0 or 1 does not fit the threshold",
                got=f"rewards with {self.settings.success_key!r}, success_threshold={threshold:g}",
                allowed="a threshold above 0, up to 1",
                fix="leave success_threshold out, or set success_key: null to learn from rewards",
            )
        return told_rewards(rollouts)

    def _close_due(self, held: set[int]) -> dict[str, float]:
        """Close the plans that are complete, or late and held by nobody; their figures, as of one."""
        figures: list[dict[str, float]] = []
        for entry in list(self._open):
            is_late = self.told_batches - entry.asked_at >= PATIENCE and not held & set(entry.waiting)
            if entry.waiting and not is_late:
                continue
            self._open.remove(entry)
            for group in entry.waiting:
                del self._of_group[group]
            if not entry.tokens:
                self.planner.cancel(entry.plan)
                log.warning("nothing came back for a plan of %d rollouts", entry.plan.budget)
                continue
            figures.append(self._logged(entry, self.planner.tell(entry.plan, [], [], allow_missing_groups=True)))
        return {f"allotment/{name}": value for name, value in merged(figures).items()}

    def _logged(self, entry: UnderWay, outcome: Outcome) -> dict[str, float]:
        threshold = self._threshold()
        tokens_Q = np.array([entry.tokens.get(prompt, 0) for prompt in entry.plan.prompt_ids], dtype=np.int64)
        if self._log is not None:
            rows = rollout_rows(entry.plan, outcome, tokens_Q, threshold)
            self._log.append({**row, "step": self.told_batches} for row in rows)
        return step_figures(entry.plan, entry.candidates, outcome, threshold, priced_estimator(self.settings))

    def _threshold(self) -> float:
        return float(self.planner.success_threshold)

    def _check_ahead(self) -> None:
        if self._ahead >= MOST_AHEAD:
            raise ConfigError(
                "nothing was told of the batches that were planned",
                got=f"{self._ahead} batches since the last rewards",
                allowed=f"at most {MOST_AHEAD}",
                fix="set --custom-reward-post-process-path allotment.integrations.slime.reward_post_process, or call "
                "that in your own; a --custom-convert-samples-to-train-data-path must call it too",
            )

    def _check_known(self, groups: Sequence[int]) -> None:
        strange = [group for group in groups if not self.is_open(group)]
        if strange:
            raise InvalidInputError(
                "rollouts came back that belong to no group that is waited for",
                got=f"group_index {strange[:3]}",
                allowed="the group_index that the data source gave, each group once",
                fix="keep group_index in the rollout and generate functions; give a group to training once, whole",
            )

    def _check_size(self, group: int, came: int) -> None:
        """Refuse more than was asked for, before anything is told."""
        asked = self.count_of(group)
        if came > asked:
            raise InvalidInputError(
                "more rollouts came back than were asked for",
                got=f"group {group}: {came} of {asked}",
                allowed="as many as the data source gave",
                fix="where a rollout becomes several samples, set the same rollout_id on all of them",
            )
