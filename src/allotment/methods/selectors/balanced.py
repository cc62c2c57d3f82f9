"""What Reinforce-Ada (arXiv 2510.04996) trains on: half correct and half wrong of a pool, or all of it, re-weighted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from allotment.checks import check_choice, check_setting, check_whole
from allotment.methods.selectors.subsets import first_of_groups
from allotment.selection.base import Scored, Selection, SelectorNeeds, Stateless, draws
from allotment.state import State, check_state, from_state
from allotment.types import FloatArray, IntArray

Baseline = Literal["pool", "log_pool", "p", "log_p"]
"""How a kept rollout is weighed; see :class:`BalancedDownSampling`."""
Subset = Literal["first", "random"]
"""Which rollouts of a class are kept: those that came first, or some drawn at random."""
Divisor = Literal["mean", "deviation"]
"""Whose root divides the advantages: the success rate, or the variance of the rewards."""
Shares = Literal["rollouts", "prompts"]
"""Whether every rollout of a step, or every prompt, counts alike in the loss."""


class BalancedDownSampling:
    """Of each prompt's pool n rollouts are kept: n // 2 correct ones, the rest wrong, either filled from the other.

    A reward of at least ``success_threshold`` is correct (r = 1), any other wrong (r = 0). With m the share of correct
    ones among all N rollouts of the pool ("global statistics") and f that among the kept ones, the advantages are

    =============== ================================= ====================================== ==========================
    ``baseline``    correct                           wrong                                  weight of grad p
    =============== ================================= ====================================== ==========================
    ``"pool"``      ``1 - m``                         ``-m``                                 ``1 / (2 p (1 - p)) - 1``
    ``"log_pool"``  ``(1 - m) / m``                   ``-1``                                 that, divided by p
    ``"p"``         ``m (1 - m) N / (N - 1) / f``     ``-m (1 - m) N / (N - 1) / (1 - f)``   1
    ``"log_p"``     ``(1 - m) / f``                   ``-(1 - m) / (1 - f)``                 ``1 / p``
    =============== ================================= ====================================== ==========================

    and 0 in a pool of one class, whose rollouts stay in the batch (they count in the number of prompts).

    ``"pool"`` is what is released (v1/v2 and code), ``"log_pool"`` the explicit weight 1/m of v3 on top of it, which no
    code has. Their weights hold for m = p and f = 1/2: about the objective logit(p) / 2 - p, and no longer that of
    log p. ``"p"`` and ``"log_p"`` are in neither: they undo the down-sampling, whatever f. For pools of fixed size N
    ``"p"`` is unbiased, and ``"log_p"`` has weight ``(1 - (1 - p)^(N - 1)) / p``; where sampling stops by what it has
    seen, m is biased and so are they (:class:`~allotment.methods.planners.reinforce_ada.ReinforceAda`).

    The loss divides by the kept rollouts of each prompt. The released code sums tokens of the batch instead
    (``aggregation="token_mean"`` of the trainer).

    Args:
        group_size: n, >= 2; the code's 4.
        baseline: as above.
        subset: ``"first"`` keeps the rollouts of a class that came first (the code), ``"random"`` some drawn at random.
        success_threshold: a reward of at least this is correct.
        seed: of ``"random"``.

    Raises:
        InvalidInputError: ``group_size`` below 2, or an unknown name.
    """

    NEEDS = SelectorNeeds(brings=frozenset({"advantages"}))
    window = 1

    def __init__(
        self,
        *,
        group_size: int = 4,
        baseline: Baseline = "pool",
        subset: Subset = "first",
        success_threshold: float = 0.5,
        seed: int = 0,
    ) -> None:
        check_choice("baseline", baseline, Baseline)
        check_choice("subset", subset, Subset)
        check_whole("group_size", group_size, 2)
        self.group_size, self.baseline, self.subset = group_size, baseline, subset
        self.success_threshold, self.seed = success_threshold, seed

    def select(self, scored: Scored) -> Selection:
        """Keep n rollouts of each pool, or all of a smaller one, with their advantages."""
        pool = Pool.of(scored, self.success_threshold)
        kept_Q2 = balanced_counts(pool.counts_Q2, self.group_size)
        cells_N = 2 * scored.rows_N + pool.class_N
        drawn = [draws(self.seed, scored.step, scored.numbers_N, "balanced")] if self.subset == "random" else []
        is_kept_N = first_of_groups(cells_N, kept_Q2.ravel(), *drawn, scored.numbers_N)
        advantages_Q2 = balanced_advantages(pool.counts_Q2, kept_Q2, self.baseline)
        advantages_N = np.where(is_kept_N, advantages_Q2.ravel()[cells_N], 0.0)
        return Selection(is_kept_N.astype(np.float64), advantages_N, denominator="kept")

    def state_dict(self) -> State:
        """The group size, which a planner may change from step to step."""
        return {"kind": type(self).__name__, "group_size": self.group_size}

    def load_state_dict(self, state: State) -> None:
        """Take over what :meth:`state_dict` gave.

        Raises:
            StateError: the state is of another selector, or its group size is none.
        """
        check_state(state, type(self).__name__, ("group_size",))
        from_state(lambda: check_whole("group_size", state["group_size"], 2))
        self.group_size = state["group_size"]


class RootWeighting(Stateless):
    """All rollouts, with advantages ``(r - m) / sqrt(m + epsilon)``, m the success rate of the group (v3, Est).

    Sampling gives a prompt n ~ 1 / sqrt(p) rollouts and the advantage another 1 / sqrt(p), which together make the
    gradient of log p where every rollout of the step counts alike: ``shares="rollouts"``, v3's reading. With
    ``shares="prompts"`` every prompt counts alike, as elsewhere in this library, and the objective is about 2 sqrt(p).
    At n rollouts the weight of grad p is ``E[k (n - k) / (n^2 sqrt(k / n + epsilon))] / (p (1 - p))``, k binomial,
    times n over the mean n with ``shares="rollouts"``; without that it tends to ``1 / sqrt(p + epsilon)``.

    Args:
        epsilon: > 0. The paper names it and not its value.
        divisor: ``"deviation"`` divides by ``sqrt(m (1 - m) + epsilon)`` instead, GRPO's advantage, which belongs to
            the samplings n ~ sqrt((1 - p) / p), for log p, and n ~ sqrt(p (1 - p)), for p (v3's appendix).
        shares: as above.
        success_threshold: a reward of at least this is correct (r = 1).

    Raises:
        InvalidInputError: epsilon is not positive, or an unknown name.
    """

    NEEDS = SelectorNeeds(brings=frozenset({"advantages"}))

    def __init__(
        self,
        *,
        epsilon: float = 0.01,
        divisor: Divisor = "mean",
        shares: Shares = "rollouts",
        success_threshold: float = 0.5,
    ) -> None:
        check_choice("divisor", divisor, Divisor)
        check_choice("shares", shares, Shares)
        check_setting("epsilon", epsilon, 0 < epsilon < np.inf, "a positive number")
        self.epsilon, self.divisor, self.shares = float(epsilon), divisor, shares
        self.success_threshold = success_threshold

    def select(self, scored: Scored) -> Selection:
        """Everything; with ``shares="rollouts"`` weighted by the size of its group over the mean size."""
        pool = Pool.of(scored, self.success_threshold)
        mean_N, size_Q = pool.means[scored.rows_N], pool.sizes
        square_N = mean_N * (1.0 - mean_N) if self.divisor == "deviation" else mean_N
        advantages_N = (pool.class_N - mean_N) / np.sqrt(square_N + self.epsilon)
        weights_N = np.ones(len(scored))
        if self.shares == "rollouts":
            weights_N = size_Q[scored.rows_N] / size_Q[size_Q > 0].mean()
        return Selection(weights_N, advantages_N)


@dataclass(frozen=True, eq=False)
class Pool:
    """The rollouts of a step by prompt and class: wrong 0, correct 1."""

    class_N: IntArray
    """[N] 1 for correct."""
    counts_Q2: IntArray
    """[Q, 2] wrong and correct rollouts of each prompt."""

    @classmethod
    def of(cls, scored: Scored, success_threshold: float) -> Pool:
        """Count."""
        class_N = (scored.rewards_N >= success_threshold).astype(np.int64)
        counts = np.bincount(2 * scored.rows_N + class_N, minlength=2 * len(scored.prompt_ids))
        return cls(class_N, counts.reshape(-1, 2))

    @property
    def sizes(self) -> IntArray:
        """[Q] rollouts of each prompt."""
        return np.asarray(self.counts_Q2.sum(axis=1), dtype=np.int64)

    @property
    def means(self) -> FloatArray:
        """[Q] share of correct rollouts; 0 for a prompt without rollouts."""
        return np.asarray(self.counts_Q2[:, 1] / np.maximum(self.sizes, 1), dtype=np.float64)


def balanced_counts(counts_Q2: IntArray, group_size: int) -> IntArray:
    """[Q, 2] how many wrong and correct rollouts of a pool are kept: halves, filled from the other class."""
    wrong_Q, correct_Q = counts_Q2.T
    kept_correct_Q = np.minimum(correct_Q, np.maximum(group_size // 2, group_size - wrong_Q))
    return np.stack([np.minimum(wrong_Q, group_size - kept_correct_Q), kept_correct_Q], axis=1)


def balanced_advantages(counts_Q2: IntArray, kept_Q2: IntArray, baseline: Baseline) -> FloatArray:
    """[Q, 2] the advantage of a wrong and a correct kept rollout; 0 for the only class of a pool."""
    size_Q = counts_Q2.sum(axis=1)
    mean_Q = counts_Q2[:, 1] / np.maximum(size_Q, 1)
    if baseline in ("pool", "log_pool"):
        advantages_Q2 = np.stack([-mean_Q, 1.0 - mean_Q], axis=1)
    else:
        share_Q2 = kept_Q2 / np.maximum(kept_Q2.sum(axis=1, keepdims=True), 1)
        variance_Q = mean_Q * (1.0 - mean_Q)
        if baseline == "p":
            variance_Q = variance_Q * size_Q / np.maximum(size_Q - 1, 1)
        advantages_Q2 = variance_Q[:, None] * np.array([-1.0, 1.0]) / np.where(share_Q2 > 0, share_Q2, 1.0)
    if baseline in ("log_pool", "log_p"):
        advantages_Q2 = advantages_Q2 / np.where(mean_Q > 0, mean_Q, 1.0)[:, None]
    return advantages_Q2
