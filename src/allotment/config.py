"""Frozen, validated configurations, the same for the command line, TOML files and Python."""

from __future__ import annotations

import difflib
import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import tyro
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from allotment.errors import ConfigError
from allotment.pricing import get_estimator
from allotment.registry import OBJECTIVES, PLANNERS, SELECTORS, Registry

EstimatorName = Literal["rloo", "dr_grpo", "shrinkage"]
USUAL_UPPER = 32
"""Most rollouts of a prompt where nobody names it."""


def by_name(registry: Registry[Any]) -> tyro.constructors.PrimitiveConstructorSpec[str]:
    """How the command line takes a name of ``registry``: any text, so that those of other packages work; the names that
    come with the library are shown. The configuration checks it.
    """
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="{" + ",".join(registry.built_in) + "}",
        instance_from_str=lambda words: words[0],
        is_instance=lambda value: isinstance(value, str),
        str_from_instance=lambda value: [value],
    )


PlannerName = Annotated[str, AfterValidator(PLANNERS.canonical), by_name(PLANNERS)]
SelectorName = Annotated[str, AfterValidator(SELECTORS.canonical), by_name(SELECTORS)]
ObjectiveName = Annotated[str, AfterValidator(OBJECTIVES.canonical), by_name(OBJECTIVES)]


def _json_object(words: list[str]) -> dict[str, Any]:
    value = json.loads(words[0])
    if not isinstance(value, dict):
        raise ValueError(f"not a JSON object: {words[0]}")
    return value


JSONObject = Annotated[
    dict[str, Any],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="JSON",
        instance_from_str=_json_object,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [json.dumps(value)],
    ),
]
"""A table in TOML, a JSON object on the command line."""


class Config(BaseModel):
    """Base of all configurations: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    @classmethod
    def from_values(cls, values: dict[str, Any], source: str) -> Self:
        """Make a config from a plain dict.

        Raises:
            ConfigError: a key is unknown (the nearest valid key is named) or a value is not allowed.
        """
        values = cls.renamed(values)
        unknown = [key for key in values if key not in cls.model_fields]
        if unknown:
            near = difflib.get_close_matches(unknown[0], cls.model_fields, n=1, cutoff=0.0)
            raise ConfigError(
                f"unknown key in {source}",
                got=repr(unknown[0]),
                allowed=", ".join(cls.model_fields),
                fix=f"did you mean {near[0]!r}?",
            )
        try:
            return cls(**values)
        except ValidationError as error:
            raise explained(error, source) from error

    @classmethod
    def renamed(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Values with the present names of their keys, where earlier versions had others."""
        return values

    @classmethod
    def from_toml(cls, path: Path) -> Self:
        """Read a TOML file.

        Raises:
            ConfigError: the file is missing, is not TOML, or does not fit.
        """
        return cls.from_values(cls.toml_values(path), str(path))

    @staticmethod
    def toml_values(path: Path) -> dict[str, Any]:
        """The fields in a TOML file, unchecked.

        Raises:
            ConfigError: the file is missing or is not TOML.
        """
        try:
            return tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(
                f"cannot read {path}", got=error, allowed="a TOML file", fix="check the path and the syntax"
            ) from error

    @classmethod
    def from_json(cls, path: Path) -> Self:
        """Read what :meth:`to_json` wrote.

        Raises:
            ConfigError: the file is missing, damaged, or does not fit.
        """
        return cls.from_values(cls.json_values(path), str(path))

    @staticmethod
    def json_values(path: Path) -> dict[str, Any]:
        """The fields in a JSON file, unchecked.

        Raises:
            ConfigError: the file is missing or holds no JSON object.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(values, dict):
                raise TypeError(f"a JSON {type(values).__name__}")
        except (OSError, UnicodeDecodeError, json.JSONDecodeError, TypeError) as error:
            raise ConfigError(
                f"cannot read {path}", got=error, allowed="a JSON object", fix="is this a run directory?"
            ) from error
        return values

    def to_json(self) -> str:
        """All fields, readable."""
        return self.model_dump_json(indent=2) + "\n"


def explained(error: ValidationError, source: str) -> ConfigError:
    """The first complaint of a validation as a :class:`~allotment.errors.ConfigError`."""
    first = error.errors()[0]
    if isinstance(own := first.get("ctx", {}).get("error"), ConfigError):  # it says already what would work
        return own
    field = ".".join(map(str, first["loc"]))
    return ConfigError(
        f"bad value in {source}" + (f" for {field}" if field else ""),
        got=repr(first["input"]) if field else "a combination that cannot be",
        allowed=first["msg"].removeprefix("Value error, "),
        fix="change the value; --help lists all fields",
    )


class RunConfig(Config):
    """What the runs of all trainers have in common."""

    USUAL_ESTIMATOR: ClassVar[EstimatorName] = "rloo"
    """Where neither the planner nor a person names one."""
    seed: int = Field(0, ge=0)
    """Fixes prompts and sampling; runs of equal seed are paired."""
    steps: int = Field(100, ge=1)
    """Optimiser steps; one batch of prompts each."""
    prompts_per_step: int = Field(16, ge=1)
    """Prompts that are trained on at a step."""
    rollouts_per_prompt: int = Field(8, ge=1)
    """Mean number of rollouts of a prompt; the budget of a step is this times the prompts, spent exactly."""
    bounds: tuple[int, int] | None = None
    """Least and most rollouts of a prompt; by default as the planner has it: 3 and 32, 1 and 32 for joint and spo."""
    planner: PlannerName = "vip"
    """Who decides the number of rollouts of each prompt."""
    planner_settings: JSONObject = Field(default_factory=dict)
    """Further settings of the planner, such as '{"predictor": "discounted-counts"}'; docs/methods.md names them."""
    select: SelectorName | None = None
    """Which of the generated rollouts are trained on; all by default, or as the planner's method has it."""
    select_settings: JSONObject = Field(default_factory=dict)
    """Further settings of the selector, such as '{"keep": 4}'."""
    estimator: EstimatorName | None = None
    """Advantage that is computed and whose variance is priced; by default as the planner has it: rloo, or shrinkage for
    joint and spo."""
    learning_rate: float = Field(1e-4, gt=0, allow_inf_nan=False)
    """Learning rate of AdamW, constant."""
    evaluate_every: int = Field(10, ge=1)
    """Steps between evaluations."""
    checkpoint_every: int = Field(10, ge=1)
    """Steps between checkpoints."""

    @property
    def budget(self) -> int:
        """Rollouts of a step."""
        return self.prompts_per_step * self.rollouts_per_prompt

    @property
    def lower(self) -> int:
        """Least rollouts of a prompt."""
        return self.limits[0]

    @property
    def upper(self) -> int:
        """Most rollouts of a prompt."""
        return self.limits[1]

    @property
    def limits(self) -> tuple[int, int]:
        """``bounds``, or those that are usual with the estimator."""
        return self.bounds or (get_estimator(self.priced).usual_lower, USUAL_UPPER)

    @property
    def priced(self) -> EstimatorName:
        """``estimator``, or the planner's."""
        return self.estimator or PLANNERS[self.planner].estimator or self.USUAL_ESTIMATOR

    @property
    def group_advantage(self) -> Literal["rloo", "dr_grpo"]:
        """The advantage of a group without baselines: plans of an estimator that believes have some."""
        return "dr_grpo" if self.priced == "dr_grpo" else "rloo"

    @property
    def task(self) -> str:
        """What is trained, in a word."""
        return "run"

    @property
    def data(self) -> str:
        """What its prompts are of."""
        return self.task

    @property
    def weighting(self) -> str:
        """Advantage and aggregation, in words."""
        return f"{self.priced}, prompt mean"

    @classmethod
    def renamed(cls, values: dict[str, Any]) -> dict[str, Any]:
        """``lower`` and ``upper`` are ``bounds`` now; ``candidates``, a multiple, is ``candidate_prompts``."""
        values = dict(values)
        if "lower" in values or "upper" in values:
            values["bounds"] = (values.pop("lower", 3), values.pop("upper", 32))
        if (multiple := values.pop("candidates", None)) is not None:
            values["candidate_prompts"] = multiple * values.get("prompts_per_step", 16)
        return values

    @model_validator(mode="after")
    def _bounds_admit_the_mean(self) -> Self:
        check_bounds(self.limits, self.rollouts_per_prompt, self.priced)
        return self


def check_bounds(bounds: tuple[int, int], mean: int, estimator: EstimatorName) -> None:
    """Raise ``ValueError`` unless a mean of ``mean`` rollouts lies within bounds that the estimator allows."""
    least = get_estimator(estimator).minimum_count
    lower, upper = bounds
    if not least <= lower <= mean <= upper:
        raise ValueError(
            f"{least} <= lower <= rollouts_per_prompt <= upper for {estimator}, got {lower}, {mean}, {upper}"
        )
