"""From a configuration to a planner that fits TRL's batch arithmetic."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from allotment.errors import ConfigError
from allotment.integrations.capabilities import TRL
from allotment.integrations.fitting import TIMES_MEAN, UPPER, Sizes, fitted_planner, fitted_selector
from allotment.integrations.trl.config import AllotmentArguments
from allotment.integrations.trl.prompts import PromptIdentity, prompt_texts
from allotment.planning import Planner
from allotment.planning.contract import Capability
from allotment.prediction import distinct_parts, text_features
from allotment.prediction.embedding import embed
from allotment.selection import Selector


@dataclass(frozen=True)
class Arithmetic(Sizes):
    """The sizes of a generation batch; its mean is TRL's ``num_generations``."""

    candidates: int
    """Prompts drawn for a batch."""

    @property
    def terms(self) -> tuple[str, str]:
        """TRL's."""
        return "per_device_train_batch_size x processes x steps_per_generation", "num_generations"

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
    return Arithmetic(budget, mean, least, candidates or least)


def planner_for(
    settings: AllotmentArguments,
    sizes: Arithmetic,
    identity: PromptIdentity,
    *,
    estimator: str,
    seed: int,
    trainer: Capability = TRL,
) -> Planner:
    """The planner that a configuration names, or the object in it, checked against TRL's arithmetic.

    Args:
        settings: its ``planner`` is a name or a planner.
        sizes: what a batch holds.
        identity: the prompts.
        estimator: ``"rloo"`` or ``"dr_grpo"``, whose variance is priced unless ``planner_kwargs`` says otherwise.
        seed: breaks ties, unless ``planner_kwargs`` says otherwise.
        trainer: what it can carry out.

    Raises:
        ConfigError: the trainer cannot carry the planner out, it cannot be made, or its budget is not TRL's batch.
    """
    given = settings.planner
    _check_candidates(settings.candidate_prompts, identity)
    if not isinstance(given, str):
        _refuse_settings_of_named(settings)
    own = settings.planner_kwargs or {}
    if isinstance(own, str):  # TRL's configurations parse it, a plain AllotmentArguments does not
        own = json.loads(own)
    if identity.stored is not None and "bounds" not in own and isinstance(given, str):
        upper = max(UPPER, TIMES_MEAN * sizes.mean)
        if not identity.has(-(-sizes.budget // upper)):  # too few prompts to spend the budget on
            own = {**own, "bounds": (min(3, sizes.mean), sizes.budget)}
    offered = {} if not isinstance(given, str) else _about_prompts(settings.prompt_embeddings, identity)
    threshold = 0.5 if settings.success_threshold is None else settings.success_threshold
    return fitted_planner(
        given,
        sizes,
        trainer,
        settings=own,
        offered={"success_threshold": threshold, **offered},
        estimator=estimator,
        seed=seed,
    )


def selector_for(settings: AllotmentArguments, planner: Planner, *, seed: int) -> Selector | None:
    """What chooses among the rollouts of a batch: the planner's own way, or the one of the configuration.

    Raises:
        ConfigError: TRL cannot carry it out, both are named, or a setting is not known.
    """
    own = (settings.select_kwargs or {}) if isinstance(settings.select, str) else {}
    own = json.loads(own) if isinstance(own, str) else own
    return fitted_selector(settings.select, planner, TRL, settings=own, seed=seed)


def _check_candidates(candidates: int | None, identity: PromptIdentity) -> None:
    if candidates is not None and identity.stored is not None and len(identity.stored) < candidates:
        raise ConfigError(
            "the data set has fewer rows than a batch has candidates",
            got=f"{len(identity.stored)} rows, candidate_prompts={candidates}",
            allowed="at most as many candidates as rows: TRL drops a batch that is not full",
            fix="lower candidate_prompts, or leave it out",
        )


def _about_prompts(source: str | None, identity: PromptIdentity) -> dict[str, Any]:
    if source is None:
        return {}
    if identity.stored is None:
        raise ConfigError(
            "the prompts of an iterable data set cannot be embedded beforehand",
            got=f"prompt_embeddings={source!r}",
            allowed="a map-style data set",
            fix="leave prompt_embeddings out, or load the data set without streaming",
        )
    first = {prompt: row for row, prompt in reversed(list(enumerate(identity.all())))}
    rows = list(first.values())
    texts = prompt_texts(identity.stored.with_format(None).select(rows)["prompt"])
    vectors: npt.NDArray[Any]
    if source.endswith(".npy"):
        vectors = _row_vectors(source, len(identity.stored))[rows]
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
