"""Planners by name, from what a trainer offers and what a person sets: VIP's variants, and those to compare with."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Unpack, get_args

import numpy as np
import numpy.typing as npt
from scipy.special import logit

from allotment.allocation import Limits, allocate_exact, inverse_accuracy, inverse_variance, uniform
from allotment.errors import ConfigError
from allotment.planning.contract import Contract, PlannerEntry
from allotment.planning.outcome import Outcome
from allotment.planning.planner import Common, Planner
from allotment.planning.success import SuccessPlanner
from allotment.planning.vip import VIP
from allotment.prediction import HierarchicalRegression, LengthPredictor, RewardVarianceGaussianProcess, Ridge
from allotment.pricing import posterior_weights
from allotment.prompts.embeddings import Embeddings
from allotment.prompts.ids import canonical_ids
from allotment.registry import ALIKE, BEFORE, EXACT, PLANNERS, PREDICTORS, UNBIASED, Row
from allotment.state import State, Stateful
from allotment.types import Allocation, FloatArray, Plan, Posterior, PromptId, PromptIds

_ABOUT_PROMPTS = ("embeddings", "ids", "features")


def make_planner(name: str, *, offered: Mapping[str, Any] | None = None, **settings: Any) -> Planner:
    """The planner of that name.

    Args:
        name: one of ``PLANNERS.names`` (:mod:`allotment.registry`, docs/methods.md).
        offered: what is known beside the settings, such as ``embeddings``, ``ids``, ``features``,
            ``success_threshold``; each reaches a planner whose constructor takes it. None values are no offer.
        settings: what its constructor takes; ``predictor`` may be the name of one (``PREDICTORS.names``).

    Raises:
        ConfigError: there is no planner or predictor of that name, something it needs is missing, or it does not know
            a setting.
        InvalidInputError: a setting is not allowed.
    """
    name = PLANNERS.canonical(name)
    entry = PLANNERS[name]
    offered = {key: value for key, value in (offered or {}).items() if value is not None}
    missing = [need for need in entry.needs if need not in offered and settings.get(need) is None]
    if missing:
        raise ConfigError(
            f"the planner {name!r} predicts from {' and '.join(missing).replace('_', ' ')} of the prompts",
            got=f"no {', '.join(missing)}",
            allowed=f"{missing[0].replace('_', ' ')} of every prompt",
            fix="give them, or use 'vip', which learns from each prompt's own record too",
        )
    if isinstance(settings.get("predictor"), str):
        settings["predictor"] = make_predictor(settings["predictor"], offered)
        offered = {key: value for key, value in offered.items() if key not in _ABOUT_PROMPTS}
    taken = parameters(entry.make)
    try:
        planner = entry.make(**{key: value for key, value in offered.items() if key in taken} | settings)
    except TypeError as error:
        raise ConfigError(
            f"the planner {name!r} cannot be made with these settings",
            got=error,
            allowed="the arguments of its class (docs/methods.md)",
            fix="correct the setting's name",
        ) from error
    planner.name = name
    return planner


def make_predictor(name: str, offered: Mapping[str, Any]) -> Any:
    """The predictor of that name, with the ``embeddings``, ``ids`` and ``features`` offered where it takes them.

    ConfigError where there is no predictor of that name, or it needs embeddings and none are offered.
    """
    entry = PREDICTORS[name]
    if entry.embeddings == "needed" and offered.get("embeddings") is None:
        raise ConfigError(
            f"the predictor {name!r} needs embeddings of the prompts",
            got="no embeddings",
            allowed=", ".join(other for other, e in PREDICTORS if e.embeddings != "needed"),
            fix="give embeddings, or choose one of these",
        )
    taken = parameters(entry.make)
    return entry.make(**{key: offered[key] for key in _ABOUT_PROMPTS if key in taken and offered.get(key) is not None})


def parameters(make: Callable[..., Any]) -> frozenset[str]:
    """The names of what a function or a class takes, those of ``**common: Unpack[...]`` too."""
    if isinstance(make, partial):
        return parameters(make.func)
    function: Any = getattr(make, "__init__") if isinstance(make, type) else make  # noqa: B009 (mypy: unsound access)
    names = set()
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is not parameter.VAR_KEYWORD:
            names.add(name)
        elif str(parameter.annotation).startswith("Unpack["):
            (common,) = get_args(eval(parameter.annotation, function.__globals__))
            names |= set(common.__annotations__)
    return frozenset(names)


def shortlist(planner: Planner, prompt_ids: list[PromptId], keep: int) -> list[PromptId]:
    """The ``keep`` prompts of largest expected reward variance ``E[p (1 - p)]``, in the order they stand in.

    Uncertainty counts as variance: a prompt never seen is kept before one that is known to fail. Ties go to the
    earlier prompt. Prompts left out are not drawn at random, so the gradient is that of the prompts that are kept.

    A planner that leaves out prompts itself gets all of them. ConfigError: it predicts no success probabilities.
    """
    if len(prompt_ids) <= keep or planner.contract.leaves_out:
        return prompt_ids
    if not isinstance(planner, SuccessPlanner):
        raise ConfigError(
            "this planner cannot choose among more candidates than it may train on",
            got=planner.name,
            allowed="a planner that predicts success probabilities, such as vip or uniform",
            fix="use as many candidates as prompts",
        )
    value_Q = planner.predictor.predict(prompt_ids).expected_variance()
    kept = np.argsort(-value_Q, kind="stable")[:keep]
    return [prompt_ids[q] for q in np.sort(kept)]


class RidgeVIP(VIP):
    """The paper's ablation of the predictor: ridge regression on embeddings, the paper's allocation (table 3)."""

    def __init__(
        self,
        *,
        embeddings: Embeddings,
        ids: PromptIds | None = None,
        success_threshold: float = 0.5,
        **common: Unpack[Common],
    ) -> None:
        belief = Ridge(embeddings, ids=ids)
        super().__init__(
            predictor=belief, price="plug_in", split="relaxed", success_threshold=success_threshold, **common
        )


def token_vip(
    *,
    budget: int,
    tokens_per_rollout: float = 1.0,
    embeddings: Embeddings | None = None,
    ids: PromptIds | None = None,
    features: npt.ArrayLike | None = None,
    success_threshold: float = 0.5,
    **settings: Any,
) -> VIP:
    """VIP with a token budget: that of ``budget`` rollouts of ``tokens_per_rollout`` tokens."""
    about: dict[str, Any] = {"embeddings": embeddings, "ids": ids, "features": features}
    lengths = LengthPredictor(typical_length=tokens_per_rollout, model=HierarchicalRegression(**about))
    return VIP(
        budget=int(budget * tokens_per_rollout), unit=lengths, success_threshold=success_threshold, **about, **settings
    )


class RewardVarianceVIP(Planner):
    """Least variance of the policy gradient for rewards that are not 0/1 (propositions E.1 and E.2).

    The paper has no experiment with it. Its plans carry no posterior of success probabilities. ``embeddings``, ``ids``
    and the further settings ``gaussian_process`` are those of
    :class:`~allotment.prediction.RewardVarianceGaussianProcess`, the others those of :class:`Planner`.
    """

    def __init__(
        self,
        *,
        embeddings: Embeddings,
        ids: PromptIds | None = None,
        gaussian_process: dict[str, Any] | None = None,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(**common)
        self.predictor = RewardVarianceGaussianProcess(embeddings, ids=ids, **(gaussian_process or {}))

    @property
    def _parts(self) -> dict[str, Stateful]:
        return {"predictor": self.predictor}

    def _open(self, ids: tuple[PromptId, ...], budget: int) -> Plan:
        (lower, upper), keys = self.bounds, self._tie_keys(ids)
        limits: Limits = {"lower": lower, "upper": upper, "estimator": self.estimator, "tie_keys": keys}
        allocation = allocate_exact(self.predictor.predict_variance(ids), budget, **limits)
        return self._new_plan(ids, allocation.counts, allocation=allocation)

    def _observe(self, outcome: Outcome) -> None:
        """Prompts with a single reward say nothing of its variance and are left out."""
        variances_Q = outcome.reward_variance()
        known = np.isfinite(variances_Q)
        ids = [prompt for prompt, some in zip(outcome.prompt_ids, known, strict=True) if some]
        if ids:
            self.predictor.observe_variance(ids, variances_Q[known])


class _Baseline(SuccessPlanner):
    """A planner whose counts come from a rule other than least variance; it still predicts, for the log."""

    RULE: Callable[..., Allocation]

    def _values(self, posterior: Posterior) -> FloatArray:
        """[Q] what the rule takes of each prompt."""
        return posterior.success_probability()

    def _allocate(self, ids: tuple[PromptId, ...], posterior: Posterior, budget: int) -> Allocation:
        (lower, upper), keys = self.bounds, self._tie_keys(ids)
        limits: Limits = {"lower": lower, "upper": upper, "estimator": self.estimator, "tie_keys": keys}
        return type(self).RULE(self._values(posterior), budget, **limits)


class Uniform(_Baseline):
    """The same number of rollouts for every prompt; a remainder goes to prompts drawn anew at each step."""

    RULE = uniform

    def _values(self, posterior: Posterior) -> FloatArray:
        return posterior_weights(posterior)


class InverseAccuracy(_Baseline):
    """Rollouts in proportion to ``1 - p`` (VIP appendix C.1): more for hard prompts."""

    RULE = inverse_accuracy


class InverseVariance(_Baseline):
    """Rollouts in proportion to ``1 / (p (1 - p))`` (VIP appendix C.1): the opposite of what theory asks."""

    RULE = inverse_variance


class Oracle:
    """A predictor that knows: ``success_probability`` of prompts by id, [Q], as they are when it is called."""

    def __init__(self, success_probability: Callable[[tuple[PromptId, ...]], FloatArray]) -> None:
        self._success_probability = success_probability

    def predict(self, ids: PromptIds) -> Posterior:
        """The exact success probability of each prompt, without uncertainty; [Q]."""
        p_Q = self._success_probability(canonical_ids(ids, unique=False))
        mean_Q = logit(np.clip(p_Q, 1e-9, 1 - 1e-9))
        return Posterior(mean_Q, np.zeros_like(mean_Q))

    def observe(self, ids: PromptIds, successes: Any, trials: Any) -> None:
        """Nothing to learn."""

    def state_dict(self) -> State:
        """Nothing to save."""
        return {}

    def load_state_dict(self, state: State) -> None:
        """Nothing to restore."""


def oracle(
    *,
    success_probability: Callable[[tuple[PromptId, ...]], FloatArray],
    success_threshold: float = 0.5,
    **settings: Any,
) -> VIP:
    """VIP that knows every success probability: the bound of what prediction can bring."""
    return VIP(predictor=Oracle(success_probability), success_threshold=success_threshold, **settings)


def _row(
    predicts: str, source: str, deviations: str, *, decides: str = BEFORE, keeps: str = EXACT, optimises: str = ALIKE
) -> Row:
    return Row(predicts, decides, keeps, optimises, source, deviations)


DEFAULT = PlannerEntry(
    VIP,
    row=_row(
        "success probability: hierarchical model of counts, embeddings and drift",
        "arXiv 2602.01601",
        "three, each measured: predictor, `E[p(1-p)]` for `p(1-p)`, exact integers; `vip-paper` has none",
    ),
)
MOMENTS = PlannerEntry(
    partial(VIP, price="gradient_moments"),
    Contract(told=frozenset({"scores"})),
    row=_row(
        "success probability and gradient moments",
        "[gradient moments](gradient_moments.md)",
        "not in a paper; the toy tells no scores, so counts here are those of `vip`",
    ),
)
SECOND_LOOK = PlannerEntry(
    partial(VIP, rounds=2),
    Contract(several_rounds=True, own_advantages="second_look"),
    row=_row(
        "success probability, twice a step",
        "[a second look](second_look.md)",
        "not in a paper",
        decides="before generation and after half of it",
        optimises="the mean success probability with `second_look_advantages`: 1; RLOO on the pooled group is biased",
    ),
)
TOKENS = PlannerEntry(
    token_vip,
    Contract(in_tokens=True, spends=(0.0, float("inf")), told=frozenset({"lengths"})),
    row=_row(
        "success probability and length",
        "[prediction](prediction.md)",
        "not in a paper; answers of the toy are one token long",
        keeps="C tokens in expectation",
    ),
)
PAPER = PlannerEntry(
    VIP.paper,
    needs=("embeddings",),
    row=_row("success probability: Gaussian process on embeddings", "arXiv 2602.01601, as printed", "none"),
)
RIDGE = PlannerEntry(
    RidgeVIP,
    needs=("embeddings",),
    row=_row("success probability: ridge regression on embeddings", "arXiv 2602.01601, table 3", "none"),
)
REWARD_VARIANCE = PlannerEntry(
    RewardVarianceVIP,
    needs=("embeddings",),
    row=_row(
        "variance of the reward: Gaussian process on embeddings",
        "arXiv 2602.01601, appendix E",
        "none; the paper has no experiment with it",
    ),
)
UNIFORM = PlannerEntry(
    Uniform,
    row=_row(
        "nothing (a belief is kept for the log)",
        "the baseline of every paper here",
        "a remainder goes to prompts drawn anew at each step",
        optimises=UNBIASED,
    ),
)
INVERSE_ACCURACY, INVERSE_VARIANCE = (
    PlannerEntry(
        kind, row=_row("success probability", "arXiv 2602.01601, appendix C.1", "the predictor is that of `vip`")
    )
    for kind in (InverseAccuracy, InverseVariance)
)
ORACLE = PlannerEntry(oracle, needs=("success_probability",))
