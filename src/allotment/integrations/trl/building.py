"""From a configuration to a planner that fits TRL's batch arithmetic."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from allotment.errors import ConfigError
from allotment.integrations.trl.config import AllotmentArguments
from allotment.integrations.trl.prompts import PromptIdentity, prompt_texts
from allotment.planning import Planner
from allotment.planning.named import make_planner
from allotment.prediction import distinct_parts, text_features
from allotment.prediction.embedding import embed


@dataclass(frozen=True)
class Arithmetic:
    """The sizes of a generation batch."""

    budget: int
    """Rollouts of a generation batch, over all processes."""
    mean: int
    """Mean rollouts of a prompt, TRL's ``num_generations``."""
    candidates: int
    """Prompts drawn for a batch."""

    @property
    def prompts(self) -> int:
        """Prompts that get rollouts, at most."""
        return self.budget // self.mean

    @property
    def repeats(self) -> int:
        """How many times the data loader repeats a candidate, so that the number of rows is the budget."""
        return self.budget // self.candidates


def arithmetic(args: Any, candidates: int | None) -> Arithmetic:
    """The sizes that TRL's arguments give.

    Raises:
        ConfigError: the candidates do not divide the generation batch, or are fewer than the prompts trained on.
    """
    budget, mean = args.generation_batch_size, args.num_generations
    least = budget // mean
    if candidates is not None and (candidates < least or budget % candidates):
        valid = [n for n in range(least, budget + 1) if budget % n == 0]
        raise ConfigError(
            "candidate_prompts does not fit the generation batch",
            got=f"candidate_prompts={candidates}",
            allowed=f"{', '.join(map(str, valid))}: divisors of the generation batch size {budget}, "
            f"from its {least} prompts on",
            fix="choose one of them, or leave candidate_prompts out",
        )
    return Arithmetic(budget, mean, candidates or least)


def planner_for(
    settings: AllotmentArguments, sizes: Arithmetic, identity: PromptIdentity, *, estimator: str, seed: int
) -> Planner:
    """The planner that a configuration names, or the object in it, checked against TRL's arithmetic.

    Args:
        settings: its ``planner`` is a name or a planner.
        sizes: what a batch holds.
        identity: the prompts.
        estimator: ``"rloo"`` or ``"dr_grpo"``, whose variance is priced unless ``planner_kwargs`` says otherwise.
        seed: breaks ties, unless ``planner_kwargs`` says otherwise.

    Raises:
        ConfigError: the planner cannot be made, or its budget is not the generation batch.
    """
    given: str | Planner = settings.planner
    _check_given(given, settings.candidate_prompts, identity)
    if isinstance(given, str):
        own = settings.planner_kwargs or {}
        if isinstance(own, str):  # TRL's configurations parse it, a plain AllotmentArguments does not
            own = json.loads(own)
        defaults: dict[str, Any] = {
            "budget": sizes.budget,
            "bounds": (min(3, sizes.mean), _default_upper(sizes, identity)),
            "estimator": "rloo" if given == "vip-moments" or sizes.mean < 3 else estimator,
            "seed": seed,
            "success_threshold": 0.5 if settings.success_threshold is None else settings.success_threshold,
            **_about_prompts(settings.prompt_embeddings, identity),
        }
        planner = make_planner(given, **{**defaults, **own})
    else:
        _refuse_settings_of_named(settings)
        planner = given
    _check(planner, sizes)
    return planner


def _check_given(planner: object, candidates: int | None, identity: PromptIdentity) -> None:
    if isinstance(planner, type) or not isinstance(planner, str | Planner):
        raise ConfigError(
            "this is no planner", got=repr(planner), allowed="a name or a planner object", fix="use 'vip'"
        )
    if candidates is not None and identity.ids is not None and len(identity.ids) < candidates:
        raise ConfigError(
            "the data set has fewer rows than a batch has candidates",
            got=f"{len(identity.ids)} rows, candidate_prompts={candidates}",
            allowed="at most as many candidates as rows: TRL drops a batch that is not full",
            fix="lower candidate_prompts, or leave it out",
        )


def _default_upper(sizes: Arithmetic, identity: PromptIdentity) -> int:
    """The larger of 32 and four times the mean; the budget where the data set has too few prompts to spend it."""
    upper = max(32, 4 * sizes.mean)
    is_too_few = identity.ids is not None and len(set(identity.ids)) * upper < sizes.budget
    return sizes.budget if is_too_few else upper


def _about_prompts(source: str | None, identity: PromptIdentity) -> dict[str, Any]:
    if source is None:
        return {}
    if identity.ids is None:
        raise ConfigError(
            "the prompts of an iterable data set cannot be embedded beforehand",
            got=f"prompt_embeddings={source!r}",
            allowed="a map-style data set",
            fix="leave prompt_embeddings out, or load the data set without streaming",
        )
    first = {prompt: row for row, prompt in reversed(list(enumerate(identity.ids)))}
    rows = list(first.values())
    texts = prompt_texts(identity.dataset.select(rows)["prompt"])
    vectors: npt.NDArray[Any]
    if source.endswith(".npy"):
        vectors = _row_vectors(source, len(identity.ids))[rows]
    else:
        vectors = embed(texts, model=None if source == "minilm" else source, progress=True)
    return {"embeddings": vectors, "ids": list(first), "features": text_features(distinct_parts(texts))}


def _row_vectors(file: str, rows: int) -> npt.NDArray[Any]:
    vectors = np.load(file)
    if len(vectors) != rows:
        raise ConfigError(
            "the embeddings do not fit the data set",
            got=f"{len(vectors)} rows in {file}",
            allowed=f"{rows}, one for each row of the data set, in its order",
            fix="embed the data set anew",
        )
    return np.asarray(vectors)


def _refuse_settings_of_named(settings: AllotmentArguments) -> None:
    names = ("planner_kwargs", "success_threshold", "prompt_embeddings")
    set_ = [name for name in names if getattr(settings, name) is not None]
    if set_:
        raise ConfigError(
            "settings for a planner that was made before",
            got=f"planner {type(settings.planner).__name__} together with {', '.join(set_)}",
            allowed="a planner object, or a name with settings",
            fix="give the settings to the planner",
        )


def _check(planner: Planner, sizes: Arithmetic) -> None:
    budget = getattr(planner, "budget", sizes.budget)
    lower, upper = getattr(planner, "bounds", (2, sizes.budget))
    unsuited = [f"unit={planner.unit!r}"] if getattr(planner, "unit", "rollouts") != "rollouts" else []  # type: ignore[attr-defined]
    if getattr(planner, "rounds", 1) != 1:
        unsuited.append("rounds=2")
    if unsuited:
        raise ConfigError(
            "TRL generates a fixed number of rollouts once a batch",
            got=f"a planner with {', '.join(unsuited)}",
            allowed="unit='rollouts', rounds=1",
            fix="leave these out, or train in the lab (allotment train)",
        )
    if budget != sizes.budget or not lower * sizes.prompts <= budget <= upper * sizes.prompts:
        raise ConfigError(
            "the planner's budget contradicts TRL's batch",
            got=f"budget {budget}, bounds ({lower}, {upper})",
            allowed=f"budget {sizes.budget} = per_device_train_batch_size x processes x steps_per_generation; "
            f"bounds around num_generations = {sizes.mean}, the mean over {sizes.prompts} prompts",
            fix=f"make the planner with budget={sizes.budget} and lower <= {sizes.mean} <= upper",
        )
