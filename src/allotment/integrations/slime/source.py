"""The data source: slime's own, with as many samples of each prompt as the planner says."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from allotment.errors import ConfigError, InvalidInputError
from allotment.integrations.slime.checks import check_args
from allotment.integrations.slime.hooks import SOURCES
from allotment.integrations.slime.needed import needs_slime
from allotment.integrations.slime.prompts import PromptIdentity
from allotment.integrations.slime.session import Session
from allotment.integrations.slime.settings import Batch, Settings

with needs_slime():
    from slime.rollout.data_source import (  # type: ignore[import-not-found]
        RolloutDataSource,
        RolloutDataSourceWithBuffer,
    )

Group = list[Any]
"""Samples of one prompt; entries may be lists, where a rollout became several samples."""


class AllotmentDataSource(RolloutDataSourceWithBuffer):  # type: ignore[misc]
    """Groups of unequal size whose sum is ``rollout_batch_size x n_samples_per_prompt``; ``--data-source-path``.

    Raises:
        ConfigError: an argument rules out counts of their own for each prompt.
        InvalidInputError: an id names two different prompts.
    """

    def __init__(self, args: Any) -> None:
        settings = Settings.of(args)
        planner, self._batch = check_args(args), Batch.of(args, settings)
        self.sample_index = 0  # as slime's own constructor sets it
        super().__init__(args)
        self._identity = PromptIdentity(settings.prompt_id)
        self._identity.check(self.dataset.samples)
        save = getattr(args, "save", None)
        self.session = Session(
            planner,
            settings,
            self._batch,
            std=bool(getattr(args, "grpo_std_normalization", True)),
            folder=None if save is None else Path(save) / "rollout",
        )
        SOURCES[id(args)] = self

    def get_samples(self, num_samples: int) -> list[Group]:
        """The groups of a batch: those that were put back, then new ones; prompts with count 0 are left out.

        Args:
            num_samples: ``rollout_batch_size``, or as many as were put back, or fewer.

        Raises:
            ConfigError: another number, for which there is no plan.
        """
        put_back: list[Group] = self.buffer[:num_samples]
        fresh = num_samples - len(put_back)
        if fresh and num_samples != self._batch.prompts:
            raise ConfigError(
                "a plan is for a whole batch",
                got=f"get_samples({num_samples}), {len(self.buffer)} groups put back",
                allowed=f"{self._batch.prompts} = --rollout-batch-size, or what was put back",
                fix="use allotment.integrations.slime.generate_rollout, or ask for the whole batch at once",
            )
        spent = sum(self.session.count_of(_index(group)) for group in put_back)
        new = self._planned(fresh, self._batch.budget - spent) if fresh else []
        del self.buffer[: len(put_back)]
        return put_back + new

    def _planned(self, prompts: int, budget: int) -> list[Group]:
        """New groups, numbered as slime numbers its own."""
        first: int = self.sample_index
        drawn = prompts + self._batch.candidates - self._batch.prompts
        groups = RolloutDataSource.get_samples(self, drawn)
        if len(groups) < drawn:
            raise ConfigError(
                "the data set is too small for a batch",
                got=f"{len(self.dataset)} prompts, {drawn} drawn for a batch",
                allowed="a batch of at most the data set",
                fix="lower --rollout-batch-size or candidates",
            )
        keys, indices = [self._identity.of(group[0]) for group in groups], [_index(group) for group in groups]
        counts = self.session.plan(keys, indices, budget=budget, trained=prompts)
        resized = [_resized(group, count) for group, count in zip(groups, counts, strict=True) if count]
        samples = [sample for group in resized for sample in group]
        for number, sample in enumerate(samples):
            sample.index = first + number
        self.sample_index = first + len(samples)
        return resized

    def add_samples(self, samples: list[Group]) -> None:
        """Take groups back that will be finished later; ``get_samples`` gives them first.

        Raises:
            InvalidInputError: a group is not waited for, is here already, or is not whole.
        """
        held = self.held_groups()
        for group in samples or []:
            index = _index(group)
            is_open = self.session.is_open(index) and index not in held
            if not is_open or len(group) != self.session.count_of(index):
                raise InvalidInputError(
                    "a group cannot be taken back",
                    got=f"group_index {index}, {len(group)} rollouts, "
                    + (f"{self.session.count_of(index)} asked for" if is_open else "not waited for"),
                    allowed="whole groups of get_samples that did not go to training, each once",
                    fix="put the group back as it was given, with all its samples",
                )
            held.add(index)
        self.buffer.extend(samples or [])

    def held_groups(self) -> set[int]:
        """The group indices of what was put back."""
        return {_index(group) for group in self.buffer}

    def save(self, rollout_id: int) -> None:
        """Slime's own state, and the planner beside it."""
        self.session.save(_planner_file(self.args.save, rollout_id))
        super().save(rollout_id)

    def load(self, rollout_id: int | None = None) -> None:
        """Slime's own state, and the planner; counts go on as if there had been no break.

        Raises:
            StateError: the planner's file is damaged, or of another planner.
        """
        super().load(rollout_id)
        done = 0 if rollout_id is None else rollout_id + 1
        self.session.told_batches = done
        if self.args.load is not None and done:
            self.session.load(_planner_file(self.args.load, done - 1), done)

    def __len__(self) -> int:
        """Prompts, as slime counts steps by them: it divides by ``rollout_batch_size``, each step draws candidates."""
        return int(super().__len__()) * self._batch.prompts // self._batch.candidates


def _index(group: Group) -> int:
    first = group[0][0] if isinstance(group[0], list) else group[0]
    return int(first.group_index)


def _resized(group: Group, count: int) -> Group:
    return [group[row] if row < len(group) else copy.deepcopy(group[0]) for row in range(count)]


def _planner_file(folder: str, rollout_id: int | None) -> Path:
    return Path(folder) / "rollout" / f"allotment_planner_{rollout_id}.safetensors"
