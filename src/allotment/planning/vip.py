"""VIP: variance-informed rollout allocation (arXiv 2602.01601), as this library would have it and as printed."""

from __future__ import annotations

from typing import Any, Literal, Self, get_args

import numpy.typing as npt

from allotment.allocation import allocate_exact, allocate_relaxed, allocate_tokens
from allotment.errors import InvalidInputError
from allotment.planning.ledger import Outcome
from allotment.planning.second_look import SecondLook
from allotment.planning.success import SuccessPlanner
from allotment.prediction import (
    GaussianProcess,
    GradientMoments,
    HierarchicalRegression,
    LengthPredictor,
    Predictor,
    Ridge,
    default_predictor,
)
from allotment.prediction.moments import ScoreVisit
from allotment.pricing import Price, gradient_moments_price, posterior_weights
from allotment.prompts.embeddings import Embeddings
from allotment.state import State, Stateful, Together
from allotment.types import Allocation, FloatArray, Plan, Posterior, PromptId, PromptIds

Unit = Literal["rollouts", "tokens"]
"""What a budget counts."""
PriceName = Literal["success_variance", "gradient_moments"]
"""What a prompt's variance is taken to depend on: its success probability, or its scores too."""


class VIP(SuccessPlanner):
    """Least variance of the policy gradient for a hard budget: minimise ``sum_q a_q g(n_q)`` with ``sum_q n_q = C``.

    The default differs from the paper in three places, each measured (docs/experiments.md): beliefs come from
    a hierarchical model of counts, embeddings and drift instead of a Gaussian process on logits alone; the price is
    ``E[p (1 - p)]`` under the belief instead of ``p (1 - p)`` at its mean; the integer split is exact instead of
    relaxed and rounded. :meth:`paper` gives the paper in all three.

    Args:
        budget: rollouts of a step, spent exactly; or its tokens, see ``unit``.
        bounds: least and most rollouts of a prompt.
        estimator: ``"rloo"`` (proposition 4.3) or ``"dr_grpo"`` (proposition 4.2, bounds from 3).
        predictor: the belief; a :class:`~allotment.prediction.HierarchicalPredictor` if None.
        embeddings: of all prompts, for the default predictor: [M, D], or a mapping from id to vector. Optional; they
            tell it about prompts never seen. More prompts can be registered with ``planner.predictor``.
        ids: [M] the prompt ids of the rows of ``embeddings``; 0..M-1 if None.
        features: [M, F] numbers beside ``embeddings``, such as :func:`~allotment.prediction.text_features`.
        plug_in: price ``p (1 - p)`` at the mean of the belief (the paper) instead of ``E[p (1 - p)]``.
        relaxed: solve the paper's continuous relaxation and round (theorems 5.1, 5.2, algorithm 2) instead of exactly.
        success_threshold: a reward of at least this counts as a success.
        seed: breaks ties between prompts of equal price, differently at each step.
        rounds: 2 splits each step: a first share of the budget, a look at what came back, the rest by what was seen.
            Ask the same prompts again after the first ``tell``, until ``done``. On a real run's success rates it takes
            about 3 % off the variance in the first epoch, where prompts have no record, and next to nothing later; in
            the lab no gain can be told from none (docs/second_look.md). The loss needs
            :func:`allotment.learning.second_look_advantages`: a pooled group is biased.
        first_share: of a prompt's expected rollouts, what is generated in the first of two rounds; in (0, 1).
        unit: ``"tokens"`` makes the budget one of completion tokens: prompts are charged their predicted length, and
            ``plan.allocation`` is a :class:`~allotment.allocation.TokenAllocation`. Every ``tell`` then needs
            ``lengths``. The budget holds in expectation; ``lengths.predicted_tokens`` and ``used_tokens``
            say how well.
        lengths: the belief about lengths, for ``unit="tokens"``; a new one if None, which makes the first step one of
            lower bounds. ``LengthPredictor(typical_length=...)`` spends the budget from the first step on.
        price: ``"gradient_moments"`` prices the variance of each prompt's gradient from what ``tell(..., scores=...)``
            says of its scores, instead of taking scores for equally large and independent of the reward. RLOO only.
            Until scores are told, counts are those of ``"success_variance"``.
        moments: the belief about scores, for ``price="gradient_moments"``; a new one if None, informed by
            ``embeddings`` and ``features`` where they are given.

    Raises:
        InvalidInputError: as :class:`SuccessPlanner`; rounds other than 1 and 2; two rounds with another estimator
            than ``"rloo"``, with ``plug_in`` or with ``relaxed``; a token budget with two rounds or ``relaxed``.
    """

    def __init__(
        self,
        *,
        budget: int,
        bounds: tuple[int, int] = (3, 32),
        estimator: str = "rloo",
        predictor: Predictor | None = None,
        embeddings: Embeddings | None = None,
        ids: PromptIds | None = None,
        features: npt.ArrayLike | None = None,
        plug_in: bool = False,
        relaxed: bool = False,
        success_threshold: float = 0.5,
        seed: int = 0,
        rounds: int = 1,
        first_share: float = 0.5,
        unit: Unit = "rollouts",
        lengths: LengthPredictor | None = None,
        price: PriceName = "success_variance",
        moments: GradientMoments | None = None,
    ) -> None:
        about_prompts = (embeddings, ids, features)
        if predictor is not None and any(given is not None for given in about_prompts):
            raise InvalidInputError(
                "embeddings for a predictor that was made before",
                got=f"predictor {type(predictor).__name__} together with embeddings, ids or features",
                allowed="either a predictor, or embeddings for the default one",
                fix="give the embeddings to the predictor",
            )
        super().__init__(
            budget=budget,
            bounds=bounds,
            estimator=estimator,
            predictor=default_predictor(*about_prompts) if predictor is None else predictor,
            success_threshold=success_threshold,
            seed=seed,
        )
        self.plug_in, self.relaxed, self.rounds = plug_in, relaxed, rounds
        _check_rounds(rounds, self.estimator, plug_in or relaxed)
        _check_unit(unit, has_lengths=lengths is not None, is_plain=rounds == 1 and not relaxed)
        self.unit = unit
        self.lengths = (lengths or LengthPredictor()) if unit == "tokens" else None
        self._second_look = SecondLook(first_share) if rounds == 2 else None
        is_exact_rloo = self.estimator == "rloo" and rounds == 1 and not (plug_in or relaxed)
        _check_price(price, has_moments=moments is not None, is_exact_rloo=is_exact_rloo)
        self.price: PriceName = price
        if price == "gradient_moments" and moments is None:
            moments = GradientMoments(scale=HierarchicalRegression(embeddings, ids=ids, features=features))
        self.moments = moments

    @property
    def done(self) -> bool:
        """Whether the step last told is complete; with two rounds False after the first."""
        return self._second_look is None or self._second_look.done

    @property
    def open_plans(self) -> tuple[Plan, ...]:
        """Plans asked and neither told nor cancelled, oldest first, without the belief behind them."""
        look, plans = self._second_look, super().open_plans
        return plans if look is None else tuple(look.with_expected(plan) for plan in plans)

    def cancel(self, plan: Plan) -> None:
        """Forget an open plan whose rollouts will never come; a second round's step ends with what its first brought.

        Raises:
            RewardMismatchError: the plan is not open.
        """
        super().cancel(plan)
        if self._second_look is not None:
            self._second_look.cancelled(plan, self._observe)

    @classmethod
    def paper(
        cls,
        *,
        budget: int,
        embeddings: Embeddings,
        ids: PromptIds | None = None,
        bounds: tuple[int, int] = (3, 32),
        estimator: str = "rloo",
        success_threshold: float = 0.5,
        seed: int = 0,
        **gaussian_process: Any,
    ) -> Self:
        """The paper as printed: Gaussian process on embeddings, plug-in price, relaxation and rounding.

        Args:
            budget: rollouts of a step.
            embeddings: of all prompts, see :class:`~allotment.prediction.GaussianProcess`.
            ids: the prompt ids of ``embeddings``.
            bounds: least and most rollouts of a prompt; the paper demands at least 3.
            estimator: ``"rloo"`` or ``"dr_grpo"``.
            success_threshold: a reward of at least this counts as a success.
            seed: breaks ties between prompts of equal price, differently at each step.
            gaussian_process: further settings of the Gaussian process (bandwidth, epsilon, jitter, prior mean).
        """
        return cls(
            budget=budget,
            bounds=bounds,
            estimator=estimator,
            predictor=GaussianProcess(embeddings, ids=ids, **gaussian_process),
            plug_in=True,
            relaxed=True,
            success_threshold=success_threshold,
            seed=seed,
        )

    def _allocate(self, ids: tuple[PromptId, ...], posterior: Posterior, budget: int) -> Allocation:
        lower, upper = self.bounds
        keys = self._tie_keys(ids)
        settings: dict[str, Any] = {"lower": lower, "upper": upper, "estimator": self.estimator, "tie_keys": keys}
        if self.moments is not None and self.moments.is_informed:
            price: FloatArray | Price = gradient_moments_price(posterior, self.moments.predict(ids))
        else:
            price = weights_Q = posterior_weights(posterior, plug_in=self.plug_in)
            if self.relaxed:
                return allocate_relaxed(weights_Q, budget, **settings)
        if self.lengths is None:
            return allocate_exact(price, budget, **settings)
        costs_Q = self.lengths.expected_length(ids, unknown=budget / (lower * len(ids)))
        return allocate_tokens(price, budget, costs_Q, **settings)

    def _observe(self, outcome: Outcome) -> None:
        if self.lengths is not None and outcome.lengths_N is None and len(outcome.rewards_N):
            raise InvalidInputError(
                "a planner with a token budget was told no lengths",
                got=f"{len(outcome.rewards_N)} rewards",
                allowed="the completion tokens of every rollout beside its reward",
                fix="tell(plan, rewards, group_ids, lengths=[...])",
            )
        if self.moments is not None and outcome.scores_NK is not None:
            is_success_N = outcome.rewards_N >= self.success_threshold
            visit = ScoreVisit.of(outcome.prompt_ids, outcome.rows_N, is_success_N, outcome.scores_NK)
            self.predictor.predict(visit.ids)  # raises where it would not observe them, before anything is learnt
            self.moments.observe(visit)
        super()._observe(outcome)
        if self.lengths is not None and outcome.lengths_N is not None:
            self.lengths.observe(outcome.prompt_ids, outcome.rows_N, outcome.lengths_N)

    def _plan(self, ids: tuple[PromptId, ...], budget: int | None) -> Plan:
        look = self._second_look
        step = None if look is None else look.due(ids)
        if look is None or step is None:
            plan = super()._plan(ids, budget)
            return plan if look is None else look.first_round(plan)
        if budget is not None:
            raise InvalidInputError(
                "a budget for the second round of a step",
                got=budget,
                allowed="none: it has what the first round left",
                fix="pass the budget when the step is first asked",
            )
        prior = self.predictor.predict(ids)
        return look.second_round(step, ids, prior, self.success_threshold, self.bounds, self._tie_keys(ids))

    def _finish(self, plan: Plan, outcome: Outcome) -> None:
        if self._second_look is None:
            self._observe(outcome)
        else:
            self._second_look.finish(plan, outcome, self._observe)

    @property
    def _belief(self) -> Stateful:
        parts: dict[str, Stateful | None] = {
            "predictor": self.predictor,
            "second_look": self._second_look,
            "lengths": self.lengths,
            "moments": self.moments,
        }
        others = any(part is not None for name, part in parts.items() if name != "predictor")
        return Together(parts) if others else self.predictor

    def _settings(self) -> State:
        share = {} if self._second_look is None else {"first_share": self._second_look.first_share}
        own: State = {"plug_in": self.plug_in, "relaxed": self.relaxed, "rounds": self.rounds}
        own |= {"unit": self.unit, "price": self.price}
        return {**super()._settings(), **own, **share}


class RidgeVIP(VIP):
    """The paper's ablation of the predictor: ridge regression on embeddings, the paper's allocation (table 3)."""

    def __init__(
        self,
        *,
        budget: int,
        embeddings: Embeddings,
        ids: PromptIds | None = None,
        bounds: tuple[int, int] = (3, 32),
        estimator: str = "rloo",
        success_threshold: float = 0.5,
        seed: int = 0,
    ) -> None:
        super().__init__(
            budget=budget,
            bounds=bounds,
            estimator=estimator,
            predictor=Ridge(embeddings, ids=ids),
            plug_in=True,
            relaxed=True,
            success_threshold=success_threshold,
            seed=seed,
        )


def _check_rounds(rounds: int, estimator: str, is_paper: bool) -> None:
    if rounds == 1 or (rounds == 2 and estimator == "rloo" and not is_paper):
        return
    raise InvalidInputError(
        "a step cannot have these rounds",
        got=f"rounds={rounds!r}, estimator {estimator!r}" + ", plug_in or relaxed" * is_paper,
        allowed="1, or 2 with the estimator 'rloo', the expected price and the exact split",
        fix="use rounds=1",
    )


def _check_unit(unit: str, *, has_lengths: bool, is_plain: bool) -> None:
    if unit == "tokens" and not is_plain:
        got, fix = "a token budget with two rounds or the relaxed split", "use rounds=1 and relaxed=False"
    elif unit == "rollouts" and has_lengths:
        got, fix = "lengths with a budget of rollouts", "pass unit='tokens' too"
    elif unit not in get_args(Unit):
        got, fix = repr(unit), "use 'rollouts'"
    else:
        return
    allowed = "'rollouts', or 'tokens' in one round, split exactly"
    raise InvalidInputError("the unit of the budget cannot be used", got=got, allowed=allowed, fix=fix)


def _check_price(price: str, *, has_moments: bool, is_exact_rloo: bool) -> None:
    if price == "gradient_moments" and not is_exact_rloo:
        got, fix = "gradient moments with two rounds, Dr. GRPO, plug_in or relaxed", "leave these out"
    elif price == "success_variance" and has_moments:
        got, fix = "moments with the price 'success_variance'", "pass price='gradient_moments' too"
    elif price not in get_args(PriceName):
        got, fix = repr(price), "use 'success_variance'"
    else:
        return
    allowed = "'success_variance', or 'gradient_moments' of 'rloo' in one round, expected and split exactly"
    raise InvalidInputError("the price cannot be used", got=got, allowed=allowed, fix=fix)
