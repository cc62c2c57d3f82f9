"""The rows of a generation batch: candidates as the data loader gives them, rollouts as the plan asks for them."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import numpy as np

from allotment.errors import ConfigError, RewardMismatchError
from allotment.types import FloatArray, IntArray, Plan, PromptId

UNCHANGEABLE = (str, int, float, bool, type(None))


@dataclass(frozen=True, eq=False)
class Layout:
    """Which candidate each of the N rollouts of a batch is of; groups stand one after another."""

    prompt_ids: tuple[PromptId, ...]
    """[Q] the prompts that get rollouts, distinct."""
    candidate_N: IntArray
    """[N] index of the candidate row."""
    group_N: IntArray
    """[N] index into ``prompt_ids``."""

    def group_ids(self, rows: Sequence[int]) -> list[PromptId]:
        """The prompt ids of some rollouts."""
        return [self.prompt_ids[group] for group in self.group_N[rows].tolist()]

    @property
    def sizes(self) -> IntArray:
        """[Q] rollouts of each prompt."""
        return np.bincount(self.group_N, minlength=len(self.prompt_ids))

    @property
    def divisor(self) -> int:
        """The largest number that divides every count: the batch is blocks of so many rollouts of one prompt."""
        return int(np.gcd.reduce(self.sizes))


def every_nth(keys: Sequence[Any], repeats: int) -> list[Any]:
    """The candidates of a batch in which each stands ``repeats`` times in a row.

    Raises:
        ConfigError: it does not.
    """
    candidates = list(keys[::repeats])
    if len(keys) % repeats or any(list(keys[i::repeats]) != candidates for i in range(1, repeats)):
        raise ConfigError(
            "the data loader does not repeat prompts as TRL's does",
            got=f"{len(keys)} rows that are not {repeats} copies of each prompt in turn",
            allowed="the order of TRL's RepeatSampler",
            fix="leave _get_train_sampler as TRL has it",
        )
    return candidates


def apart(candidate_ids: Sequence[PromptId]) -> list[PromptId]:
    """The ids, with ``#2``, ``#3``, ... behind those that stood there before: each candidate is a prompt of its own."""
    seen: Counter[PromptId] = Counter()
    own = []
    for prompt in candidate_ids:
        seen[prompt] += 1
        own.append(prompt if seen[prompt] == 1 else f"{prompt}#{seen[prompt]}")
    return own


def copies(candidate_ids: Sequence[PromptId], plan: Plan, prompt_ids: Sequence[PromptId]) -> FloatArray | None:
    """[Q] how often each of ``prompt_ids``, the prompts with rollouts, stands among the candidates; None for once each.

    Relative to the mean over all candidates where the plan has weights, else over ``prompt_ids``.
    """
    times = Counter(candidate_ids)
    if len(times) == len(candidate_ids):
        return None
    copies_Q = np.array([times[prompt] for prompt in prompt_ids], dtype=np.float64)
    mean = copies_Q.mean() if plan.weights is None else len(candidate_ids) / len(times)
    return np.asarray(copies_Q / mean)


def lay_out(
    candidate_ids: Sequence[PromptId],
    prompt_ids: Sequence[PromptId],
    counts: Sequence[int],
    rows: int,
    *,
    least: int = 2,
) -> Layout:
    """The rollouts of a plan; candidates with the same id share its rollouts in turn.

    Args:
        candidate_ids: ids of the candidates, in the order of the data loader.
        prompt_ids: [Q] the prompts planned for, distinct, each the id of a candidate.
        counts: [Q] their rollouts.
        rows: N, what the counts must sum to.
        least: fewest rollouts of a prompt that gets any; 1 has nothing to be compared with but a baseline.

    Raises:
        RewardMismatchError: another sum, or a count below ``least``.
    """
    if sum(counts) != rows or any(0 < count < least for count in counts):
        raise RewardMismatchError(
            "the plan does not fill the batch",
            got=f"{sum(counts)} rollouts, counts from {min(counts)} to {max(counts)}",
            allowed=f"{rows} rollouts, each count 0 or from {least} on",
            fix="use a planner that spends its budget exactly, with a lower bound of 2 or more",
        )
    places: dict[PromptId, list[int]] = {}
    for place, prompt in enumerate(candidate_ids):
        places.setdefault(prompt, []).append(place)
    count_of = dict(zip(prompt_ids, counts, strict=True))
    planned = [(prompt, own, count_of[prompt]) for prompt, own in places.items() if count_of.get(prompt)]
    candidates = [place for _, own, count in planned for place in islice(cycle(own), count)]
    groups = np.repeat(np.arange(len(planned)), [count for _, _, count in planned])
    return Layout(tuple(prompt for prompt, _, _ in planned), np.array(candidates), groups)


def row_copies(row: dict[str, Any], columns: Sequence[str], count: int) -> list[dict[str, Any]]:
    """So many copies of a row that their rollouts may change; what nobody can change is itself."""
    kept = {name: row[name] for name in columns}
    made = [kept.copy() for _ in range(count)]
    for name in columns:
        if type(kept[name]) not in UNCHANGEABLE:
            for own in made:
                own[name] = copy.deepcopy(kept[name])
    return made
