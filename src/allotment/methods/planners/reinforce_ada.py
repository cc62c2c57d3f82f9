"""Reinforce-Ada, sequential: sample a prompt until its rewards carry a signal (arXiv 2510.04996, v1/v2 and code)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Unpack

import numpy as np

from allotment.allocation import allocate_exact, uniform
from allotment.allocation.exact import check_bounds
from allotment.checks import check_choice, check_setting, check_whole
from allotment.errors import InfeasibleBudgetError
from allotment.methods.selectors.subsets import first_of_groups
from allotment.planning.contract import Contract, PlannerEntry
from allotment.planning.outcome import Outcome
from allotment.planning.planner import Common, Planner
from allotment.planning.rounds import Step
from allotment.prediction import Predictor
from allotment.registry import Row
from allotment.selection import Scored, Selection, SelectorNeeds, draws
from allotment.state import State, Stateful, check_state, from_state
from allotment.types import FloatArray, IntArray, Plan, Posterior, PromptId

Baseline = Literal["pool", "log_pool", "p", "log_p"]
"""How a kept rollout is weighed; see :class:`BalancedDownSampling`."""
Subset = Literal["first", "random"]
"""Which rollouts of a class are kept: those that came first, or some drawn at random."""
Exit = Literal["balance", "positive"]
"""When a prompt has been sampled enough: both classes often enough, or correct ones often enough."""


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
    seen, m is biased and so are they (:class:`ReinforceAda`).

    The loss divides by the kept rollouts of each prompt. The released code sums tokens of the batch instead
    (``aggregation="token_mean"`` of the trainer).

    Args:
        group_size: n, >= 2; the code's 4.
        subset: ``"first"`` keeps the rollouts of a class that came first (the code), ``"random"`` some drawn at random.
        success_threshold: a reward of at least this is correct.

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
        """Take over what :meth:`state_dict` gave; StateError where it is of another selector or no group size."""
        check_state(state, type(self).__name__, ("group_size",))
        from_state(lambda: check_whole("group_size", state["group_size"], 2))
        self.group_size = state["group_size"]


class ReinforceAda(Planner):
    """Every prompt gets C/Q rollouts a round until it has ``positives`` correct and ``negatives`` wrong ones.

    Predicts nothing; decides between the rounds of a step. The budget C is that of round 0, split evenly; each later
    round gives ``C // Q`` to every prompt that has not left, up to ``rounds`` times C/Q and the upper bound. So a step
    costs from C to ``rounds * C``: at 4 x 8, the code's rounds, a prompt of p = 0.5 costs 8.0 rollouts with the
    positive exit, of p = 0.1 13.6, of p = 0.02 25.5; with the balance exit 8.6, and 21.0 at both 0.1 and 0.9.

    What is trained on is its :attr:`selector`'s choice, which re-weights prompts: see
    :class:`BalancedDownSampling`. The released advantages have weight
    ``W(p) = 1 / (2 p (1 - p)) - 1`` relative to grad p where the pool's mean is p and no prompt stays unresolved;
    stopping by what was seen and the cap bend that. At 4 x 8, n = 4, exactly (the tests compute and measure it):

    =============== ===== ===== ===== ===== ===== =====
    p                0.02  0.05   0.1   0.2   0.5   0.9
    =============== ===== ===== ===== ===== ===== =====
    W(p)            24.51  9.53  4.56  2.13  1.00  4.56
    pool, balance    7.17  5.86  3.95  2.05  1.00  3.95
    pool, positive   5.88  4.27  2.80  1.66  0.97  1.58
    p, balance       1.18  1.29  1.29  1.17  1.03  1.29
    log_p, balance  23.06 15.58  9.26  4.76  2.00  1.47
    =============== ===== ===== ===== ===== ===== =====

    A pool's mean is no estimate of p either: with the balance exit it is 0.132 on average at p = 0.1.

    Paper and code: v1 and the code leave at one correct rollout (``"positive"``) or at n/2 and n - n/2
    (``"balance"``); v3 names 16, or 8 and 8: set ``positives`` and ``negatives``. Prompts left with one class after the
    last round stay in the batch with advantage 0. No clipping, entropy or length settings are taken over.

    With a ``predictor`` (our addition: a belief to start from, such as VIP's) round 0 spends the same C where it is
    believed to bring the most prompts a signal, both classes for ``"balance"``, a correct rollout for ``"positive"``:
    a prompt of nearly certain outcome, and one sure to show both, get the lower bound, a rare success gets more.
    For this split beliefs count as Beta distributions of the same mean and standard deviation. The rounds after it and
    the exit rule are unchanged; the predictor is told all rounds of a step as one visit.

    Args:
        budget: C, rollouts of round 0.
        bounds: least and most rollouts of a prompt over all rounds; the code's most is 4 x 8 = 32.
        predictor: a belief to start from; None for none.
        rounds: most rounds of a step.
        group_size: n, rollouts of a prompt that are trained on; half of C/Q (at least 2) if None, the code's 4 of 8.
        positives: correct rollouts to leave with; if None 1 for ``"positive"``, n // 2 for ``"balance"``.
        negatives: wrong rollouts to leave with, for ``"balance"``; n - n // 2 if None.
    """

    contract = Contract(several_rounds=True, spends=(1.0, float("inf")), selects=BalancedDownSampling.NEEDS)

    def __init__(
        self,
        *,
        success_threshold: float = 0.5,
        predictor: Predictor | None = None,
        exit: Exit = "balance",
        rounds: int = 4,
        group_size: int | None = None,
        positives: int | None = None,
        negatives: int | None = None,
        baseline: Baseline = "pool",
        subset: Subset = "first",
        **common: Unpack[Common],
    ) -> None:
        super().__init__(**common)
        check_setting("success_threshold", success_threshold, bool(np.isfinite(success_threshold)), "a finite number")
        check_choice("exit", exit, Exit)
        for name, value, least in (
            ("rounds", rounds, 1),
            ("group_size", group_size, 2),
            ("positives", positives, 1),
            ("negatives", negatives, 0),
        ):
            if value is not None or name == "rounds":
                check_whole(name, value, least)
        check_setting("negatives", negatives, exit == "balance" or not negatives, "none with exit='positive'")
        self.success_threshold, self.predictor = float(success_threshold), predictor
        self.exit, self.rounds = exit, rounds
        self.group_size, self.positives, self.negatives = group_size, positives, negatives
        self._selector = BalancedDownSampling(
            group_size=4 if group_size is None else group_size,
            baseline=baseline,
            subset=subset,
            success_threshold=self.success_threshold,
            seed=self.seed,
        )

    @property
    def selector(self) -> BalancedDownSampling:
        """Down-samples each pool to n, the n of the step last opened."""
        return self._selector

    def needed(self, group_size: int) -> tuple[int, int]:
        """(correct, wrong) rollouts with which a prompt leaves, where n = ``group_size`` are trained on."""
        if self.exit == "positive":
            return (1 if self.positives is None else self.positives), 0
        positives = group_size // 2 if self.positives is None else self.positives
        return positives, group_size - group_size // 2 if self.negatives is None else self.negatives

    def _open(self, ids: tuple[PromptId, ...], budget: int) -> Plan:
        lower, upper = self.bounds
        check_bounds(budget, lower, upper, n_prompts=len(ids), minimum_count=lower)
        most, keys = self._most(len(ids), budget), self._tie_keys(ids)
        posterior = None if self.predictor is None else self.predictor.predict(ids)
        if posterior is None:
            counts_Q = uniform(len(ids), budget, lower=lower, upper=upper, tie_keys=keys).counts
        else:
            price = NoSignalPrice.of(posterior, is_both=self.exit == "balance")
            counts_Q = allocate_exact(price, budget, lower=lower, upper=most, tie_keys=keys).counts
        group_size = self.group_size or max(2, budget // len(ids) // 2)
        self._check_reach(group_size, most)
        self._selector.group_size = group_size
        return self._new_plan(ids, counts_Q, posterior=posterior)

    def _next(self, step: Step) -> Plan | None:
        if step.round + 1 >= self.rounds:
            return None
        outcome = step.needed_outcome
        positives, negatives = self.needed(self._selector.group_size)
        correct_Q = outcome.successes(self.success_threshold)
        is_active_Q = (correct_Q < positives) | (outcome.received - correct_Q < negatives)
        prompts, budget = len(outcome.prompt_ids), step.budget
        room_Q = np.maximum(self._most(prompts, budget) - outcome.planned, 0)
        return step.next_plan(np.where(is_active_Q, np.minimum(room_Q, budget // prompts), 0))

    def _most(self, prompts: int, budget: int) -> int:
        """Rollouts of a prompt over all rounds of a step, at most."""
        return min(self.bounds[1], self.rounds * -(-budget // prompts))

    def _check_reach(self, group_size: int, most: int) -> None:
        positives, negatives = self.needed(group_size)
        if positives + negatives > most:
            raise InfeasibleBudgetError(
                "no prompt could ever leave",
                got=f"{positives} correct and {negatives} wrong rollouts to leave with",
                allowed=f"at most {most} together: {self.rounds} rounds of C/Q, within the upper bound",
                fix="lower positives, negatives or group_size, or raise rounds, the budget or the upper bound",
            )

    def _observe(self, outcome: Outcome) -> None:
        if self.predictor is None:
            return
        ids, rows_B = outcome.told()
        self.predictor.observe(ids, outcome.successes(self.success_threshold)[rows_B], outcome.received[rows_B])

    @property
    def _parts(self) -> dict[str, Stateful]:
        own: dict[str, Stateful] = {"selector": self._selector}
        return own if self.predictor is None else {**own, "predictor": self.predictor}

    def _settings(self) -> State:
        names = ("success_threshold", "exit", "rounds", "group_size", "positives", "negatives")
        own = {name: getattr(self, name) for name in names}
        return {**super()._settings(), **own, "baseline": self._selector.baseline, "subset": self._selector.subset}


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


MOST_CERTAIN = 1e6
"""Imaginary rollouts behind a belief, at most: a point estimate is a Beta distribution of this weight."""


@dataclass(frozen=True, eq=False)
class NoSignalPrice:
    """Probability that n rollouts of a prompt are all wrong, or (with ``is_both``) all alike, p ~ Beta."""

    alpha: FloatArray
    """[Q] of correct rollouts."""
    beta: FloatArray
    """[Q] of wrong ones."""
    is_both: bool
    """Whether n correct rollouts are no signal either."""
    minimum_count = 2

    @classmethod
    def of(cls, posterior: Posterior, *, is_both: bool) -> NoSignalPrice:
        """With the mean and the standard deviation that are believed."""
        mean_Q = np.clip(posterior.success_probability(), 1e-9, 1 - 1e-9)
        variance_Q = np.maximum(posterior.standard_deviation() ** 2, 1e-300)
        total_Q = np.clip(mean_Q * (1 - mean_Q) / variance_Q - 1, 1 / MOST_CERTAIN, MOST_CERTAIN)
        return cls(total_Q * mean_Q, total_Q * (1 - mean_Q), is_both)

    def __len__(self) -> int:
        return len(self.alpha)

    def gains(self, grid_K: IntArray) -> FloatArray:
        """[Q, K] probability that the rollout after the n-th is the first to differ: ``E[x^n (1 - x)]``."""
        total_Q1 = (self.alpha + self.beta)[:, None]
        gains_QK = sum(powers_QK[:, grid_K] * y[:, None] / (total_Q1 + grid_K) for powers_QK, y in self._parts(grid_K))
        return np.asarray(gains_QK, dtype=np.float64)

    def cost(self, counts_Q: IntArray) -> FloatArray:
        """[Q] ``E[x^n]``, summed over what x may be: 1 - p, and p."""
        rows_Q = np.arange(len(self))
        return np.asarray(sum(powers_QK[rows_Q, counts_Q] for powers_QK, _ in self._parts(counts_Q)), dtype=np.float64)

    def _parts(self, counts: IntArray) -> list[tuple[FloatArray, FloatArray]]:
        """``E[x^n]`` for n = 0 .. the largest count, [Q, K], and the weight of 1 - x, [Q]; for each x."""
        sides = [(self.beta, self.alpha), (self.alpha, self.beta)][: 1 + self.is_both]
        i_K = np.arange(int(counts.max()))
        parts = []
        for x_Q, y_Q in sides:
            ratios_QK = (x_Q[:, None] + i_K) / ((x_Q + y_Q)[:, None] + i_K)
            powers_QK = np.concatenate([np.ones((len(x_Q), 1)), np.cumprod(ratios_QK, axis=1)], axis=1)
            parts.append((powers_QK, y_Q))
        return parts


ENTRY = PlannerEntry(
    ReinforceAda,
    ReinforceAda.contract,
    row=Row(
        "nothing, or a belief to start from",
        "between rounds of a step",
        "from C to `rounds` times C, by what comes back",
        'neither p nor log p: `1/(2p(1-p)) - 1` without the cap (line: exact, with it); `baseline="p"`, `"log_p"`: '
        "p, log p but for the bias of the pool's mean",
        "arXiv 2510.04996, v1/v2 and code",
        "no token mean; v3's 1/p weight by name (`log_pool`)",
    ),
)
