"""What Allotment reads of slime's arguments: the block ``allotment``, and the batch arithmetic around it."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, get_args

from allotment.errors import ConfigError
from allotment.integrations.carrying import Weighting
from allotment.integrations.fitting import Sizes, fitted_planner, imported
from allotment.planning import Planner
from allotment.planning.contract import Capability


@dataclass(frozen=True)
class Settings:
    """The block ``allotment`` of the file that ``--custom-config-path`` names."""

    planner: str = "vip"
    """A planner by name, or module:function, called with planner_kwargs and a budget."""
    planner_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of the planner: bounds (default 3 and the larger of 32 and 4 n), estimator, seed."""
    estimator: str = "slime"
    """slime: the rewards of a group as slime normalises them, as its own flags say; rloo: against the others."""
    prompt_weighting: Weighting = "prompt"
    """prompt: times mean(n) / n, so that each prompt of a batch counts the same; rollout: as they are."""
    candidates: int | None = None
    """Prompts drawn for each batch, of which rollout_batch_size get rollouts; None: no more than those."""
    prompt_id: str | None = None
    """Key of a row's metadata that names its prompt; None, and where it is missing: a hash of all the row holds."""
    success_key: str | None = "acc"
    """Key of a reward that is a table: the rollout's success, 0 or 1, where there is one."""
    success_threshold: float = 0.5
    """A reward of at least this is a success, to a planner given by name."""

    @classmethod
    def of(cls, args: Any) -> Settings:
        """Those of slime's arguments.

        Raises:
            ConfigError: the block is no table, a key is unknown, or a value is not allowed.
        """
        block = getattr(args, "allotment", None) or {}
        if not isinstance(block, Mapping):
            raise _refused("block", block, "a table of settings")
        names = [item.name for item in fields(cls)]
        for key in block:
            if key not in names:
                near = difflib.get_close_matches(str(key), names, n=1, cutoff=0.0)[0]
                raise _refused("key", key, ", ".join(names), f"did you mean {near!r}?")
        found = cls(**block)
        found._check()
        return found

    def _check(self) -> None:
        allowed: dict[str, tuple[bool, str]] = {
            "planner": (isinstance(self.planner, str), "a name, or module:function"),
            "planner_kwargs": (isinstance(self.planner_kwargs, Mapping), "a table"),
            "estimator": (self.estimator in ("slime", "rloo"), "slime, rloo"),
            "prompt_weighting": (self.prompt_weighting in get_args(Weighting), ", ".join(get_args(Weighting))),
            "candidates": (self.candidates is None or _is_count(self.candidates), "a whole number from 1 on"),
            "prompt_id": (self.prompt_id is None or isinstance(self.prompt_id, str), "a key of the metadata"),
            "success_key": (self.success_key is None or isinstance(self.success_key, str), "a key of the reward"),
            "success_threshold": (_is_number(self.success_threshold), "a finite number"),
        }
        for name, (is_right, what) in allowed.items():
            if not is_right:
                raise _refused(name, getattr(self, name), what)


@dataclass(frozen=True)
class Batch:
    """The arithmetic of a step."""

    prompts: int
    """Prompts that get rollouts, ``--rollout-batch-size``."""
    mean: int
    """Mean rollouts of a prompt, ``--n-samples-per-prompt``."""
    candidates: int
    """Prompts drawn for a batch."""

    @classmethod
    def of(cls, args: Any, settings: Settings) -> Batch:
        """That of slime's arguments."""
        prompts = int(args.rollout_batch_size)
        return cls(prompts, int(args.n_samples_per_prompt), settings.candidates or prompts)

    @property
    def budget(self) -> int:
        """Rollouts of a batch."""
        return self.prompts * self.mean


class SlimeSizes(Sizes):
    """A batch of slime's, as a planner must fit it."""

    @property
    def terms(self) -> tuple[str, str]:
        """Slime's."""
        return "--rollout-batch-size x --n-samples-per-prompt", "--n-samples-per-prompt"


def planner_of(args: Any, settings: Settings, batch: Batch, slime: Capability) -> Planner:
    """The planner of a run, checked against its batch.

    Raises:
        ConfigError: it cannot be made, its budget or bounds do not fit, or slime cannot carry it out.
    """
    given: Any = settings.planner
    if ":" in settings.planner:
        make = imported(settings.planner, setting="planner ", where="slime's rollout manager")
        given = make(budget=batch.budget, **settings.planner_kwargs)
    return fitted_planner(
        given,
        SlimeSizes(batch.budget, batch.mean, batch.prompts),
        slime,
        settings=settings.planner_kwargs,
        offered={"success_threshold": settings.success_threshold},
        estimator=priced_estimator(settings),
        seed=int(getattr(args, "rollout_seed", None) or 0),
    )


def priced_estimator(settings: Settings) -> str:
    """The estimator whose variance is priced, nearest to the one that is trained with."""
    return "rloo" if settings.estimator == "rloo" else "dr_grpo"


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _refused(name: str, got: object, allowed: str, fix: str = "") -> ConfigError:
    """The error of an entry of the block."""
    fix = fix or "correct it in the file of --custom-config-path"
    return ConfigError(f"the {name} of allotment's settings cannot be used", got=repr(got), allowed=allowed, fix=fix)
