"""MoPPS (arXiv 2507.04632): train on the prompts whose success probability, drawn from the belief, is near 1/2."""

from __future__ import annotations

from dataclasses import replace
from typing import Unpack

import numpy as np
from scipy.special import betaincinv, expit, ndtri

from allotment.allocation import uniform
from allotment.checks import check_setting
from allotment.planning.contract import Contract, PlannerEntry
from allotment.planning.success import SuccessPlanner, SuccessSettings
from allotment.prediction import DiscountedCounts, Predictor
from allotment.prediction.posteriors import BetaPosterior, GridPosterior
from allotment.pricing import posterior_weights
from allotment.prompts.ids import canonical_ids
from allotment.registry import BEFORE, Row
from allotment.state import State, check_state, from_state
from allotment.types import Allocation, FloatArray, Posterior, PromptId, PromptIds

LEAST = 2.0**-53
"""The least draw; the quantile of a normal distribution at 0 is infinite."""


class MoPPS(SuccessPlanner):
    """Equal counts for those ``trained_prompts`` candidates whose drawn success probability is nearest to 1/2.

    Thompson sampling: one draw from the belief about each candidate, so that prompts of which little is known are
    tried. Predicts success probabilities; decides before anything is generated; spends the budget exactly, on the
    chosen prompts alone. Those left out are not made up for by weights, so a prompt of success probability p weighs
    ``P(chosen | p) Q / trained_prompts`` against 1 under uniform allocation over all Q: most near 1/2, next to nothing
    near 0 and 1.

    The paper offers 8 or 16 candidates for each prompt trained on, 8 rollouts each. With one rollout each the official
    sampler's update is the constant 8, by a slip of operator precedence; here it is the paper's.

    Args:
        budget: rollouts of a step, spent exactly; a remainder goes to chosen prompts drawn anew at each step.
        predictor: the belief; :class:`BetaCounts` if None. The paper's other setting is ``BetaCounts(forgetting=0.5)``.
        trained_prompts: how many of the prompts asked get rollouts; all if None or if fewer are asked.
        band: success probabilities that are equally welcome; of draws outside, the nearest are taken. The paper's
            alternative is (0.3, 0.7).
    """

    contract = Contract(leaves_out=True)

    def __init__(
        self,
        *,
        trained_prompts: int | None = None,
        band: tuple[float, float] = (0.5, 0.5),
        **common: Unpack[SuccessSettings],
    ) -> None:
        super().__init__(**common)
        low, high = band
        is_count = trained_prompts is None or (type(trained_prompts) is int and trained_prompts >= 1)
        check_setting("trained_prompts", trained_prompts, is_count, "a whole number >= 1, or None")
        check_setting("band", band, 0 <= low <= high <= 1, "0 <= low <= high <= 1")
        self.trained_prompts, self.band = trained_prompts, (float(low), float(high))

    def _usual_predictor(self) -> Predictor:
        return BetaCounts()

    def _allocate(self, ids: tuple[PromptId, ...], posterior: Posterior, budget: int) -> Allocation:
        low, high = self.band
        keys = self._tie_keys(ids)
        p_Q = thompson_draws(posterior, self._draws(ids, "thompson"))
        distance_Q = np.maximum(np.maximum(low - p_Q, p_Q - high), 0.0)
        chosen = np.sort(np.lexsort((keys, distance_Q))[: self.trained_prompts])
        allocation = uniform(
            posterior_weights(posterior)[chosen],
            budget,
            lower=self.bounds[0],
            upper=self.bounds[1],
            estimator=self.estimator,
            tie_keys=keys[chosen],
        )
        counts_Q = np.zeros(len(ids), dtype=np.int64)
        counts_Q[chosen] = allocation.counts
        counts_Q.setflags(write=False)
        return replace(allocation, counts=counts_Q)

    def _settings(self) -> State:
        low, high = self.band
        return {**super()._settings(), "prompts": self.trained_prompts, "band_low": low, "band_high": high}


def thompson_draws(posterior: Posterior, uniform_Q: FloatArray) -> FloatArray:
    """[Q] the quantile of each prompt's success probability at ``uniform_Q``, in [0, 1)."""
    u_Q = np.maximum(uniform_Q, LEAST)
    if isinstance(posterior, BetaPosterior):
        return np.asarray(betaincinv(posterior.alpha, posterior.beta, u_Q), dtype=np.float64)
    if isinstance(posterior, GridPosterior):
        below_QK = np.cumsum(posterior.weights, axis=1) < u_Q[:, None]
        column_Q = np.minimum(np.count_nonzero(below_QK, axis=1), below_QK.shape[1] - 1)
        return np.asarray(expit(posterior.logits[np.arange(len(column_Q)), column_Q]), dtype=np.float64)
    return np.asarray(expit(posterior.mean + np.sqrt(posterior.variance) * ndtri(u_Q)), dtype=np.float64)


class BetaCounts(DiscountedCounts):
    """A Beta posterior for each prompt with the same prior for all, older visits discounted.

    At a visit with s successes and f failures ``a <- lambda a + (1 - lambda) a0 + s`` and b with f likewise, lambda
    being ``forgetting``. Unlike :class:`~allotment.prediction.DiscountedCounts` it takes nothing from other prompts.

    Args:
        forgetting: lambda, in (0, 1]; the paper has 1 (MATH) and 0.5 (Countdown).
        prior: a0 and b0, > 0.
    """

    KIND = "BetaCounts"

    def __init__(self, *, forgetting: float = 1.0, prior: tuple[float, float] = (1.0, 1.0)) -> None:
        super().__init__(forgetting=forgetting)
        self.prior = _prior(*prior)

    def predict(self, ids: PromptIds) -> BetaPosterior:
        """[Q] the Beta posterior of each prompt."""
        counts_Q2 = self._table.gather(canonical_ids(ids, unique=False))
        return BetaPosterior.from_counts(self.prior[0] + counts_Q2[:, 0], self.prior[1] + counts_Q2[:, 1])

    def state_dict(self) -> State:
        """Settings, ids and discounted counts."""
        return {**super().state_dict(), "prior_successes": self.prior[0], "prior_failures": self.prior[1]}

    def load_state_dict(self, state: State) -> None:
        """Take over everything from a :meth:`state_dict`, settings included."""
        check_state(state, self.KIND, ("prior_successes", "prior_failures"))
        prior = from_state(lambda: _prior(state["prior_successes"], state["prior_failures"]))
        loaded = DiscountedCounts()
        loaded.load_state_dict({**state, "kind": DiscountedCounts.KIND})
        vars(self).update(vars(loaded), prior=prior)


def _prior(successes: float, failures: float) -> tuple[float, float]:
    are_positive = 0 < successes < np.inf and 0 < failures < np.inf
    check_setting("prior", (successes, failures), are_positive, "two positive numbers")
    return float(successes), float(failures)


ENTRY = PlannerEntry(
    MoPPS,
    MoPPS.contract,
    candidates=4,
    row=Row(
        "success probability: discounted Beta counts, one draw from each",
        BEFORE,
        "exactly C on the chosen prompts",
        "a prompt counts by how often it is chosen: prompts near p = 1/2",
        "arXiv 2507.04632, code thu-rllab/MoPPS",
        "a visit discounts only prompts that were rolled out; how a band fills up",
    ),
)
