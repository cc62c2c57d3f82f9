"""What TRL's ``DPOTrainer`` is given: prompts of a round, draws of its pairs, a loader; and a data set of pairs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from allotment.errors import InvalidInputError
from allotment.methods.objectives.pairs import PairsName, preference_pairs
from allotment.types import FloatArray, IntArray, PromptId

log = logging.getLogger("allotment")

Text = str | Sequence[dict[str, Any]]
"""A text, or a list of messages."""


def prompts_of_round(ids: Sequence[PromptId], size: int, number: int, seed: int) -> list[PromptId]:
    """[size] the prompts of round ``number``: laps through all of ``ids``, each in another random order.

    What is left at the end of a lap and does not fill a round is passed over. Depends on nothing but the arguments.
    """
    lap, place = divmod(number, len(ids) // size)
    order = np.random.default_rng((seed, lap)).permutation(len(ids))
    return [ids[i] for i in order[place * size : (place + 1) * size]]


def draw(shares_P: FloatArray, count: int, generator: np.random.Generator) -> IntArray:
    """[count] pairs in random order, each drawn ``count * share / sum of shares`` times, rounded down or up.

    The systematic draw: the mean over what is drawn has the expectation of the mean over all pairs by their shares.
    """
    edges_P = np.cumsum(shares_P)
    points = (np.arange(count) + generator.random()) * (edges_P[-1] / count)
    return generator.permutation(np.minimum(np.searchsorted(edges_P, points, side="right"), len(shares_P) - 1))


class RoundLoader:
    """A data loader of which an epoch is a round.

    ``batches``: of the round of a number, from 0 on. ``length``: how many they are.
    """

    def __init__(self, batches: Callable[[int], Iterator[dict[str, Tensor]]], length: int) -> None:
        self._batches, self._length = batches, length
        self._number = 0

    def __len__(self) -> int:
        return self._length

    def set_epoch(self, epoch: int) -> None:
        """Which round is next; transformers says so before it."""
        self._number = epoch

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return self._batches(self._number)


def preference_dataset(
    prompts: Sequence[Text],
    completions: Sequence[Text],
    rewards: Sequence[float],
    group_ids: Sequence[Hashable],
    *,
    pairs: PairsName = "all",
) -> Dataset:
    """The pairs of N rewarded completions as the stock ``DPOTrainer`` takes them: ``prompt``, ``chosen``, ``rejected``.

    Args:
        prompts: [N] the prompt of each completion: a text, or a list of messages.
        completions: [N] texts, or lists of messages where prompts are.
        rewards: [N] finite numbers; in a pair the higher is chosen.
        group_ids: [N] which completions are compared with each other: those of one prompt.
        pairs: ``all`` pairs of unequal rewards, so that a prompt weighs as many times as it has pairs; or ``extreme``:
            best and worst of a group, one pair a prompt.

    Raises:
        InvalidInputError: lengths differ, a reward is not finite, a group has several prompts, or no pair is left.
    """
    lengths = [len(prompts), len(completions), len(rewards), len(group_ids)]
    if len(set(lengths)) > 1 or not lengths[0]:
        got = "{} prompts, {} completions, {} rewards, {} group ids".format(*lengths)
        raise InvalidInputError(
            "these are not rewarded completions", got=got, allowed="one of each a completion", fix="pass all"
        )
    number: dict[Hashable, int] = {}
    groups_N = [number.setdefault(group, len(number)) for group in group_ids]
    _check_groups(prompts, groups_N)
    rewards_N = torch.tensor([np.nan if r is None else r for r in rewards], dtype=torch.float64)
    found = preference_pairs(rewards_N, torch.tensor(groups_N), pairs)
    if not len(found):
        raise InvalidInputError(
            "there is no pair to learn from",
            got=f"{len(rewards)} completions of {found.groups} prompts, no two of a prompt with unequal rewards",
            allowed="at least one prompt with a better and a worse completion",
            fix="draw more completions a prompt, or other prompts; check the rewards and the group ids",
        )
    log.info("%d pairs; %d of %d prompts have none", len(found), found.without_pair, found.groups)
    better, worse = found.chosen_P.tolist(), found.rejected_P.tolist()
    columns = {
        "prompt": [prompts[row] for row in better],
        "chosen": [completions[row] for row in better],
        "rejected": [completions[row] for row in worse],
    }
    return Dataset.from_dict(columns)


def _check_groups(prompts: Sequence[Text], groups_N: Sequence[int]) -> None:
    first: dict[int, Text] = {}
    for row, (prompt, group) in enumerate(zip(prompts, groups_N, strict=True)):
        if first.setdefault(group, prompt) != prompt:
            raise InvalidInputError(
                "completions of different prompts are in one group",
                got=f"{first[group]!r}, and in row {row} {prompt!r}",
                allowed="one prompt a group: only its completions can be compared",
                fix="check the order of the group ids",
            )
