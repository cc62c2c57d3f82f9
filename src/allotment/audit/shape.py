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

from allotment.audit.figures import unbiased_variance
from allotment.audit.replaying import Replay
from allotment.audit.scoring import shrinkage_variance, unbiased_square_error, unbiased_variance_square
from allotment.pricing import RLOO, ShrinkagePrice


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


def noise(replay: Replay, kappa: float) -> Noise:
    """The noise of the replayed visits: unbiased where a visit has the rollouts to tell, else as it was believed."""
    log, price = replay.log, ShrinkagePrice.of_moments(replay.probability, replay.weights)
    several_V = log.trials > 1
    variance_V = np.where(several_V, unbiased_variance(log.successes, log.trials), replay.weights)
    error_V = np.where(
        several_V, unbiased_square_error(log.successes, log.trials, replay.probability), price.uncertainty
    )
    square_V = unbiased_variance_square(log.successes, log.trials)
    is_believed_V = np.isnan(square_V)
    mean_variance = float(variance_V.mean())

    def rloo(n: int) -> float:
        return mean_variance * float(RLOO.variance(n)) if n > 1 else float("inf")

    def shrinkage(n: int) -> float:
        share_V = price.shares(np.full(len(variance_V), n))
        return float(shrinkage_variance(variance_V, error_V, share_V, n).mean())

    between = kappa * float(np.where(is_believed_V, replay.squares, square_V).mean())
    return Noise(between, rloo, shrinkage, float(is_believed_V.mean()))


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
    noise: Noise, own: tuple[int, int], rollouts: int, *, available: int, tokens: Tokens
) -> tuple[Shape, tuple[Shape, ...]]:
    """The log's own step, and steps of at most ``rollouts`` rollouts.

    Args:
        noise: what a prompt adds.
        own: prompts and rollouts a prompt of the log's step; with RLOO, or with shrinkage for groups of one, it has
            variance 1.
        rollouts: of a step, at least 1.
        available: prompts that a step may have.
        tokens: what a rollout and a prompt take.
    """
    own_prompts, own_size = own
    unit = (noise.between + (noise.rloo if own_size > 1 else noise.shrinkage)(own_size)) / own_prompts

    def shape(prompts: int, n: int) -> Shape:
        totals = [(noise.between + within(n)) / (prompts * unit) for within in (noise.rloo, noise.shrinkage)]
        rloo, shrinkage = (float(total) if np.isfinite(total) else None for total in totals)
        between = noise.between / (prompts * unit)
        completion = None if tokens.completion is None else prompts * n * tokens.completion
        prefill = None if tokens.prompt is None else prompts * tokens.prompt
        return Shape(prompts, n, between, rloo, shrinkage, completion, prefill, prompts <= available)

    return shape(*own), tuple(shape(rollouts // n, n) for n in group_sizes(rollouts, own_size))


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
