"""VIP: variance-informed rollout allocation (arXiv 2602.01601), as this library would have it and as printed."""

from __future__ import annotations

from typing import Any, Self

from allotment.allocation import allocate_exact, allocate_relaxed
from allotment.planning.success import SuccessPlanner
from allotment.prediction import GaussianProcess, Predictor, Ridge
from allotment.prediction.storage import Embeddings
from allotment.pricing import posterior_weights
from allotment.state import State
from allotment.types import Allocation, Posterior, PromptId, PromptIds


class VIP(SuccessPlanner):
    """Least variance of the policy gradient for a hard budget: minimise ``sum_q a_q g(n_q)`` with ``sum_q n_q = C``.

    The default differs from the paper in three places, each measured (docs/experiments.md): beliefs are discounted
    counts of each prompt's own rollouts instead of a Gaussian process on embeddings; the price is ``E[p (1 - p)]``
    under the belief instead of ``p (1 - p)`` at its mean; the integer split is exact instead of relaxed and rounded.
    :meth:`paper` gives the paper in all three.

    Args:
        budget: rollouts of a step, spent exactly.
        bounds: least and most rollouts of a prompt.
        estimator: ``"rloo"`` (proposition 4.3) or ``"dr_grpo"`` (proposition 4.2, bounds from 3).
        predictor: the belief; :class:`~allotment.prediction.DiscountedCounts` if None.
        plug_in: price ``p (1 - p)`` at the mean of the belief (the paper) instead of ``E[p (1 - p)]``.
        relaxed: solve the paper's continuous relaxation and round (theorems 5.1, 5.2, algorithm 2) instead of exactly.
        success_threshold: a reward of at least this counts as a success.
        seed: breaks ties between prompts of equal price, differently at each step.
    """

    def __init__(
        self,
        *,
        budget: int,
        bounds: tuple[int, int] = (3, 32),
        estimator: str = "rloo",
        predictor: Predictor | None = None,
        plug_in: bool = False,
        relaxed: bool = False,
        success_threshold: float = 0.5,
        seed: int = 0,
    ) -> None:
        super().__init__(
            budget=budget,
            bounds=bounds,
            estimator=estimator,
            predictor=predictor,
            success_threshold=success_threshold,
            seed=seed,
        )
        self.plug_in, self.relaxed = plug_in, relaxed

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
        allocate = allocate_relaxed if self.relaxed else allocate_exact
        return allocate(
            posterior_weights(posterior, plug_in=self.plug_in),
            budget,
            lower=lower,
            upper=upper,
            estimator=self.estimator,
            tie_keys=self._tie_keys(ids),
        )

    def _settings(self) -> State:
        return {**super()._settings(), "plug_in": self.plug_in, "relaxed": self.relaxed}


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
