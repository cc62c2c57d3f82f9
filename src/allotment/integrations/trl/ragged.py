"""What reward functions, rollout functions and derived trainers may assume of groups of unequal size, and its checks.

* Rows of one prompt stand together; a group has as many as the plan says. A reward function that names the argument
  ``group_ids`` is told the number of each row's group.
* While a batch is generated, ``trainer.num_generations`` and ``trainer.args.num_generations`` are the largest number
  that divides every count: the rows are blocks of so many of one prompt. With equal counts that is TRL's own number.
* A derived class may change what ``_generate_and_score_completions`` of TRL returns; it sees advantages by group.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from types import CodeType
from typing import Any

from trl import GRPOTrainer, RLOOTrainer

from allotment.errors import ConfigError, RewardMismatchError
from allotment.integrations.trl.updating import OpenBatch

GROUP_SIZE, GROUP_IDS = "num_generations", "group_ids"


def names(function: Any, argument: str) -> bool:
    """Whether a reward function has an argument of this name."""
    try:
        return argument in inspect.signature(function).parameters
    except (TypeError, ValueError):  # a model, or a function of C
        return False


def chunking(reward_functions: Iterable[Any], trainer: type) -> list[str]:
    """Names of the reward functions that read ``num_generations`` and are not told groups, and of the methods between
    the trainer and TRL's own class that do.
    """
    functions = [f for f in reward_functions if reads(f, GROUP_SIZE) and not names(f, GROUP_IDS)]
    found = [getattr(f, "__name__", type(f).__name__) for f in functions]
    own = trainer.__mro__[: next((i for i, c in enumerate(trainer.__mro__) if c in (GRPOTrainer, RLOOTrainer)), 0)]
    derived = [cls for cls in own if not cls.__module__.startswith("allotment.")]
    return found + [f"{c.__name__}.{n}" for c in derived for n, f in vars(c).items() if reads(f, GROUP_SIZE)]


def reads(function: Any, name: str) -> bool:
    """Whether the code of a function, of what it is made of, or of an object's call, uses a name."""
    if isinstance(function, partial):
        return name in function.keywords or reads(function.func, name)
    if not hasattr(function, "__code__"):
        function = vars(type(function)).get("__call__")
    code = getattr(function, "__code__", None)
    return isinstance(code, CodeType) and _uses(code, name)


def _uses(code: CodeType, name: str) -> bool:
    own = {*code.co_names, *code.co_varnames, *code.co_freevars, *(c for c in code.co_consts if isinstance(c, str))}
    return name in own or any(_uses(inner, name) for inner in code.co_consts if isinstance(inner, CodeType))


def check_drawn(places: Sequence[int | None], repeats: int) -> None:
    """Refuse a sampler that draws fewer prompts than there are candidates, each several times in a row."""
    runs: list[int] = []
    for i, place in enumerate(places):
        if i and place is not None and place == places[i - 1]:
            runs[-1] += 1
        else:
            runs.append(1)
    if len(set(runs)) == 1 and 1 < runs[0] < len(places):
        raise ConfigError(
            "the sampler draws fewer prompts than there are candidates",
            got=f"{len(runs)} prompts, each {runs[0] * repeats} times in a row",
            allowed=f"{len(places)} candidates, each {repeats} times: trainer.num_generations while the loader is made",
            fix="let _get_train_sampler repeat prompts self.num_generations times, or leave candidate_prompts out",
        )


def check_scored(batch: OpenBatch, trainer: type) -> None:
    """Refuse a class that scores batches itself: advantages would not be those of the plan."""
    if batch.rewards_N is None:
        raise ConfigError(
            "the trainer scores a batch without TRL's _generate_and_score_completions",
            got=", ".join(cls.__name__ for cls in trainer.__mro__[2:] if cls not in (GRPOTrainer, RLOOTrainer, object)),
            allowed="a class whose _generate_and_score_completions calls super()",
            fix="call super()._generate_and_score_completions(inputs) and change what it returns",
        )


def check_prompts_returned(output: dict[str, Any], prompts: Sequence[object]) -> None:
    """Refuse rollouts of a ``rollout_func`` that belong to other prompts than the rows they came back for.

    ``prompts``: [n] hashes of the prompts of this process's rows. Rows of different prompts must not come back with the
    same prompt tokens, unless all do.
    """
    mask = output["prompt_mask"].bool()
    tokens = [tuple(ids[keep].tolist()) for ids, keep in zip(output["prompt_ids"], mask, strict=True)]
    prompts_of: dict[tuple[int, ...], set[object]] = {}
    for ids, prompt in zip(tokens, prompts, strict=True):
        prompts_of.setdefault(ids, set()).add(prompt)
    if len(prompts_of) > 1 and any(len(several) > 1 for several in prompts_of.values()):
        counts = list(Counter(prompts).values())
        raise RewardMismatchError(
            "rollout_func gave rollouts of other prompts than those it was asked for",
            got=f"different prompts with equal prompt_ids; the rows hold {counts} of each prompt",
            allowed="one rollout for each entry of `prompts`, in its order; equal prompts stand together, in groups of "
            "unequal size, each a multiple of trainer.num_generations",
            fix="generate for each entry of prompts, or once for every trainer.num_generations of them",
        )
