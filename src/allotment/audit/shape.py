"""How many prompts for a number of rollouts: the variance of a step's gradient by its shape, from a log.

A step of P prompts with n rollouts each leaves, in units of the size of a score::

    between / P + V(n) / P,      between = mean |g|^2,   |g|^2 = kappa (p (1 - p))^2

V(n) is ``a / (n - 1)`` under RLOO, and :func:`~allotment.audit.scoring.shrinkage_variance` with a belief as baseline.
The variance between prompts is ``mean |g|^2 - |mean g|^2``; the last is not known without gradients, so that between is
an upper bound, and what more prompts gain is as well. Prompts are drawn at random.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from allotment.audit.equivalence import Interval, resampled_sums
from allotment.audit.figures import unbiased_variance
from allotment.audit.replaying import Replay
from allotment.audit.scoring import shrinkage_variance, unbiased_square_error, unbiased_variance_square
from allotment.pricing import RLOO, ShrinkagePrice
from allotment.types import FloatArray


@dataclass(frozen=True)
class Noise:
    """What one prompt of a step adds to the variance, a mean over the visits of a log."""

    between: float
    """``kappa mean (p (1 - p))^2``."""
    rloo: Callable[[int], float]
    """V(n) with the other rollouts as baseline; infinite at n = 1."""
    shrinkage: Callable[[int], float]
    """V(n) with a belief in the baseline too."""
    from_belief: float
    """Share of the visits with fewer than four rollouts, of which the belief says what they do not tell."""
    by_prompt: Callable[[str, int], FloatArray]
    """[M] between and V(n) of ``"rloo"`` or ``"shrinkage"``, summed over the visits of each prompt."""


def visit_noise(replay: Replay, kappa: float) -> tuple[FloatArray, Callable[[str, int], FloatArray]]:
    """[V] between, and V(n) of ``"rloo"`` or ``"shrinkage"`` [V], of each visit: unbiased where the visit has the
    rollouts to tell, else as it was believed.
    """
    log, price = replay.log, ShrinkagePrice.of_moments(replay.probability, replay.variance)
    several_V = log.trials > 1
    variance_V = np.where(several_V, unbiased_variance(log.successes, log.trials), replay.variance)
    error_V = np.where(
        several_V, unbiased_square_error(log.successes, log.trials, replay.probability), price.uncertainty
    )
    square_V = unbiased_variance_square(log.successes, log.trials)
    between_V = kappa * np.where(np.isnan(square_V), replay.squares, square_V)

    def within(estimator: str, n: int) -> FloatArray:
        if estimator == "rloo":
            return variance_V * float(RLOO.variance(n))
        return shrinkage_variance(variance_V, error_V, price.shares(np.full(len(variance_V), n)), n)

    return between_V, within


def noise(replay: Replay, kappa: float) -> Noise:
    """The noise of the replayed visits."""
    log, (between_V, within) = replay.log, visit_noise(replay, kappa)

    def mean(estimator: str) -> Callable[[int], float]:
        least = 2 if estimator == "rloo" else 1
        return lambda n: float(within(estimator, n).mean()) if n >= least else float("inf")

    def by_prompt(estimator: str, n: int) -> FloatArray:
        return np.bincount(log.prompt, between_V + within(estimator, n), minlength=len(log.ids)).astype(np.float64)

    return Noise(float(between_V.mean()), mean("rloo"), mean("shrinkage"), float((log.trials < 4).mean()), by_prompt)


@dataclass(frozen=True)
class Tokens:
    """What a rollout and a prompt take; None where it is not known."""

    completion: float | None = None
    """Tokens of a completion, in the mean."""
    prompt: float | None = None
    """Tokens of a prompt, in the mean, read once for all its rollouts."""


@dataclass(frozen=True)
class Shape:
    """A step of equal groups, its variance relative to the log's own step, and what it takes."""

    prompts: int
    rollouts_per_prompt: int
    between: float
    """What the choice of prompts adds."""
    rloo: float | None
    """The whole variance with RLOO; None at one rollout a prompt."""
    shrinkage: float | None
    """The whole variance with the belief in the baseline."""
    completion_tokens: float | None
    prefill_tokens: float | None
    is_possible: bool
    """Whether the log has so many prompts."""
    rloo_interval: Interval | None = None
    """Of ``rloo``, over the log's prompts; kappa is taken for certain."""
    shrinkage_interval: Interval | None = None

    @property
    def rollouts(self) -> int:
        """Of the step."""
        return self.prompts * self.rollouts_per_prompt

    @property
    def tokens(self) -> float | None:
        """Completions and prefill."""
        if self.completion_tokens is None or self.prefill_tokens is None:
            return None
        return self.completion_tokens + self.prefill_tokens


def group_sizes(rollouts: int, own: int) -> tuple[int, ...]:
    """The numbers of rollouts a prompt that are compared: powers of two, up to 64 or eight times the log's own, and the
    log's own; none above ``rollouts``.
    """
    powers = {2**i for i in range(rollouts.bit_length()) if 2**i <= max(64, 8 * own)}
    return tuple(sorted(n for n in powers | {own} if n <= rollouts))


def shapes(
    noise: Noise, own: tuple[int, int], rollouts: int, *, available: int, tokens: Tokens, seed: int = 0
) -> tuple[Shape, tuple[Shape, ...]]:
    """The log's own step, and steps of at most ``rollouts`` rollouts.

    Args:
        noise: what a prompt adds.
        own: prompts and rollouts a prompt of the log's step; with RLOO, or with shrinkage for groups of one, it has
            variance 1.
        rollouts: of a step, at least 1.
        available: prompts that a step may have.
        tokens: what a rollout and a prompt take.
        seed: of the draws of prompts for the intervals.
    """
    own_prompts, own_size = own
    sizes = group_sizes(rollouts, own_size)
    unit = "rloo" if own_size > 1 else "shrinkage"
    names = [
        (unit, own_size),
        *((name, n) for name in ("rloo", "shrinkage") for n in sizes if (name, n) != ("rloo", 1)),
    ]
    sums_MC = np.stack([noise.by_prompt(*name) for name in names], axis=1)
    column = {name: c for c, name in reversed(list(enumerate(names)))}
    whole_C, resampled_RC = sums_MC.sum(axis=0), resampled_sums(sums_MC, seed=seed)

    def total(name: str, prompts: int, n: int) -> Interval | None:
        if (name, n) not in column:
            return None
        c, share = column[name, n], own_prompts / prompts
        return Interval.of(float(whole_C[c] / whole_C[0] * share), resampled_RC[:, c] / resampled_RC[:, 0] * share)

    def shape(prompts: int, n: int) -> Shape:
        rloo, shrinkage = total("rloo", prompts, n), total("shrinkage", prompts, n)
        between = noise.between / (noise.between + getattr(noise, unit)(own_size)) * own_prompts / prompts
        completion = None if tokens.completion is None else prompts * n * tokens.completion
        prefill = None if tokens.prompt is None else prompts * tokens.prompt
        return Shape(
            prompts,
            n,
            between,
            rloo.value if rloo is not None else None,
            shrinkage.value if shrinkage is not None else None,
            completion,
            prefill,
            prompts <= available,
            rloo,
            shrinkage,
        )

    return shape(*own), tuple(shape(rollouts // n, n) for n in sizes)


@dataclass(frozen=True)
class Best:
    """The shape of least variance among those that cost the same."""

    shape: Shape
    variance: float
    """Relative to the log's own step at the same cost: variance falls as one over the prompts, cost grows with them."""


def best(own: Shape, found: Sequence[Shape], estimator: str, cost: str) -> Best | None:
    """The best of the possible shapes for ``"rloo"`` or ``"shrinkage"``, where ``"rollouts"`` or ``"tokens"`` are
    equal; None where the cost is not known, or no shape has groups that the estimator can do with.
    """
    paid = getattr(own, cost)
    rated = [
        (getattr(shape, estimator) * getattr(shape, cost) / paid, shape)
        for shape in found
        if shape.is_possible and getattr(shape, estimator) is not None and paid is not None
    ]
    if not rated:
        return None
    variance, shape = min(rated, key=lambda pair: (pair[0], pair[1].prompts))
    return Best(shape, variance)
