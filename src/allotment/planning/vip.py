"""VIP: variance-informed rollout allocation (arXiv 2602.01601), as this library would have it and as printed."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Self, Unpack

import numpy.typing as npt

from allotment.allocation import allocate_exact
from allotment.planning import options
from allotment.planning.choosing import PromptChoice, open_chosen
from allotment.planning.contract import Contract
from allotment.planning.gradient_size import GradientSize
from allotment.planning.outcome import Outcome
from allotment.planning.planner import Common
from allotment.planning.rounds import Step
from allotment.planning.score_weighted import ScoreWeighted
from allotment.planning.shrinkage import Shrinkage
from allotment.planning.success import SuccessPlanner
from allotment.prediction import GradientMoments, HierarchicalRegression, LengthPredictor, Predictor
from allotment.pricing import Price, WeightedPrice, get_estimator, posterior_weights
from allotment.prompts.embeddings import Embeddings
from allotment.state import State, Stateful
from allotment.types import Allocation, FloatArray, Plan, Posterior, PromptId, PromptIds


class VIP(SuccessPlanner):
    """Least variance of the policy gradient for a hard budget: minimise ``sum_q a_q g(n_q)`` with ``sum_q n_q = C``.

    The default differs from the paper in three places, each measured (docs/experiments/): beliefs come from
    a hierarchical model of counts, embeddings and drift instead of a Gaussian process on logits alone; the price is
    ``E[p (1 - p)]`` under the belief instead of ``p (1 - p)`` at its mean; the integer split is exact instead of
    relaxed and rounded. :meth:`paper` gives the paper in all three.

    Args:
        predictor: the belief; the default predictor, on ``embeddings`` and ``features`` if given, where it is None.
        embeddings: of all prompts, for the default predictor: [M, D], or a mapping from id to vector. Optional; they
            tell it about prompts never seen. More prompts can be registered with ``planner.predictor``.
        ids: [M] the prompt ids of the rows of ``embeddings``; 0..M-1 if None.
        features: [M, F] numbers beside ``embeddings``, such as :func:`~allotment.prediction.text_features`.
        success_threshold: a reward of at least this counts as a success.
        price: what a prompt's variance is. ``"success_variance"``: ``E[p (1 - p)]``. ``"plug_in"``: ``p (1 - p)`` at
            the mean of p's logit. ``"gradient_moments"``, or a :class:`~allotment.prediction.GradientMoments`, the
            belief about scores: that of its gradient, from what ``tell(..., scores=...)`` says; RLOO only, and until
            scores are told, counts are those of ``"success_variance"``.
        split: ``"exact"``, the integer optimum, or ``"relaxed"``, the paper's relaxation, rounded (algorithm 2).
        unit: ``"tokens"``, or a :class:`~allotment.prediction.LengthPredictor`, makes the budget one of completion
            tokens: prompts are charged their predicted length, every ``tell`` needs ``lengths``, and the budget holds
            in expectation, from the first step on with ``LengthPredictor(typical_length=...)``.
        rounds: 2, or a :class:`~allotment.planning.options.SecondLook`, splits each step: a first share of the
            budget, a look at what came back, the rest by what was seen. Ask the same prompts again until ``done``.
        choose: ``"prompts"``, or a :class:`~allotment.planning.choosing.PromptChoice`, lets ``ask`` return fewer
            prompts than it was given: drawn with known probabilities, weighed by their inverse (docs/joint.md).
        baseline: with the estimator ``"shrinkage"``, ``"belief"``, or ``"score_weighted"`` for the baseline of least
            variance as a function of the belief, learnt from what ``tell(..., scores=...)`` says.
        common: ``budget`` (spent exactly, or tokens, see ``unit``), ``bounds``, ``estimator``, ``seed`` of
            :class:`~allotment.planning.planner.Planner`.

    Raises:
        InvalidInputError: as :class:`SuccessPlanner`; or options that do not fit together.
    """

    CONCURRENT_STEPS = True
    BELIEVES = True

    def __init__(
        self,
        *,
        predictor: Predictor | None = None,
        embeddings: Embeddings | None = None,
        ids: PromptIds | None = None,
        features: npt.ArrayLike | None = None,
        success_threshold: float = 0.5,
        price: options.PriceName | GradientMoments = "success_variance",
        split: options.Split = "exact",
        unit: options.Unit | LengthPredictor = "rollouts",
        rounds: int | options.SecondLook = 1,
        choose: options.Choose | PromptChoice = "rollouts",
        baseline: options.Baseline = "belief",
        **common: Unpack[Common],
    ) -> None:
        predictor = options.predictor_of(predictor, embeddings, ids, features)
        super().__init__(predictor=predictor, success_threshold=success_threshold, **common)
        self.price: options.PriceName = "gradient_moments" if isinstance(price, GradientMoments) else price
        self.unit: options.Unit = "tokens" if isinstance(unit, LengthPredictor) else unit
        self.rounds: int = 2 if isinstance(rounds, options.SecondLook) else rounds
        self.split: options.Split = split
        self.choose: options.Choose = choose if isinstance(choose, str) else "prompts"
        self.baseline: options.Baseline = baseline
        options.check_options(self)
        if baseline == "score_weighted":
            self.shrinkage = Shrinkage(ScoreWeighted())
        self.moments = price if isinstance(price, GradientMoments) else None
        if price == "gradient_moments":
            self.moments = GradientMoments(scale=HierarchicalRegression(embeddings, ids=ids, features=features))
        self.lengths = unit if isinstance(unit, LengthPredictor) else None
        if unit == "tokens":
            self.lengths = LengthPredictor()
        self.choice = choose if not isinstance(choose, str) else PromptChoice() if choose == "prompts" else None
        """How prompts are drawn; None where all are taken."""
        self.sizes = None if self.choice is None else GradientSize()
        """The squared gradient of a prompt, for the choice of prompts."""
        weighted = None if self.shrinkage is None else self.shrinkage.weighted
        self.score_parts = [part for part in (weighted, self.sizes) if part is not None]
        self._look = rounds if isinstance(rounds, options.SecondLook) else options.SecondLook() if rounds == 2 else None

    @classmethod
    def paper(
        cls, *, embeddings: Embeddings, ids: PromptIds | None = None, success_threshold: float = 0.5, **settings: Any
    ) -> Self:
        """The paper as printed: Gaussian process on embeddings, plug-in price, relaxation and rounding.

        Further ``settings`` are ``budget``, ``bounds`` (from 3), ``estimator`` and ``seed``, and those of
        :class:`~allotment.prediction.GaussianProcess` (bandwidth, epsilon, jitter, prior mean).
        """
        from allotment.prediction import GaussianProcess

        own: Any = {name: settings.pop(name) for name in list(settings) if name in Common.__annotations__}
        belief = GaussianProcess(embeddings, ids=ids, **settings)
        return cls(predictor=belief, price="plug_in", split="relaxed", success_threshold=success_threshold, **own)

    @property
    def contract(self) -> Contract:
        """Rounds, tokens, scores and lengths as its options have it."""
        needs_scores = self.moments is not None or self.baseline == "score_weighted"
        told = {"scores": needs_scores, "lengths": self.lengths is not None}
        return Contract(
            several_rounds=self._look is not None,
            own_advantages=None if self._look is None else "second_look",
            in_tokens=self.lengths is not None,
            spends=(1.0, 1.0) if self.lengths is None else (0.0, float("inf")),
            told=frozenset(name for name, is_told in told.items() if is_told),  # type: ignore[misc]
            leaves_out=self.choice is not None,
            weights=self.choice is not None,
            baselines=self.shrinkage is not None,
        )

    def _open(self, ids: tuple[PromptId, ...], budget: int) -> Plan:
        if self.choice is not None:
            return open_chosen(self, ids, budget)
        plan = super()._open(ids, budget)
        return plan if self._look is None else self._look.first_round(plan)

    def _next(self, step: Step) -> Plan | None:
        if self._look is None or step.outcome is None:
            return None
        ids = step.outcome.prompt_ids
        prior = self.predictor.predict(ids)
        return options.second_round(step, prior, self.success_threshold, self.bounds, self._tie_keys(ids))

    def price_of(self, ids: tuple[PromptId, ...], posterior: Posterior) -> Price:
        """What rollouts of each prompt are worth."""
        if self.moments is not None and self.moments.is_informed:
            from allotment.pricing import gradient_moments_price

            return gradient_moments_price(posterior, self.moments.predict(ids))
        if self.shrinkage is not None:
            return self.shrinkage.price(posterior)
        weights_Q = posterior_weights(posterior, plug_in=self.price == "plug_in")
        return WeightedPrice(weights_Q, get_estimator(self.estimator))

    def token_costs(self, ids: tuple[PromptId, ...], budget: int) -> FloatArray:
        """[Q] tokens that a rollout of each prompt is expected to take."""
        assert self.lengths is not None
        return self.lengths.expected_length(ids, unknown=budget / (self.bounds[0] * len(ids)))

    def _allocate(
        self, ids: tuple[PromptId, ...], posterior: Posterior, budget: int, price: Price | None = None
    ) -> Allocation:
        """Split by ``price``; by :meth:`price_of` if None."""
        lower, upper = self.bounds
        keys = self._tie_keys(ids)
        limits: dict[str, Any] = {"lower": lower, "upper": upper, "estimator": self.estimator, "tie_keys": keys}
        if self.split == "relaxed":
            from allotment.allocation import allocate_relaxed

            return allocate_relaxed(posterior_weights(posterior, plug_in=self.price == "plug_in"), budget, **limits)
        price = self.price_of(ids, posterior) if price is None else price
        if self.lengths is None:
            return allocate_exact(price, budget, **limits)
        from allotment.allocation import allocate_tokens

        costs_Q = self.token_costs(ids, budget)
        spendable = budget if self.choice is None else self.choice.spendable(budget, lower * costs_Q)
        return allocate_tokens(price, spendable, costs_Q, **limits)

    def _observe(self, outcome: Outcome) -> None:
        if self.lengths is not None:
            options.check_lengths(outcome)
        super()._observe(outcome)
        if self.lengths is not None and outcome.lengths_N is not None:
            self.lengths.observe(outcome.prompt_ids, outcome.rows_N, outcome.lengths_N)

    @property
    def _parts(self) -> dict[str, Stateful]:
        parts = {"lengths": self.lengths, "moments": self.moments, "sizes": self.sizes}
        return super()._parts | {name: part for name, part in parts.items() if part is not None}

    def _settings(self) -> State:
        own: State = {"plug_in": self.price == "plug_in", "relaxed": self.split == "relaxed", "rounds": self.rounds}
        price = "gradient_moments" if self.price == "gradient_moments" else "success_variance"
        share = {} if self._look is None else {"first_share": self._look.first_share}
        chosen: State = {} if self.choice is None else {"choose": asdict(self.choice)}
        chosen |= {} if self.baseline == "belief" else {"baseline": self.baseline}
        return {**super()._settings(), **own, "unit": self.unit, "price": price, **share, **chosen}
