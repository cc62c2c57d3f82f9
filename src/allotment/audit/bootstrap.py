"""How sure is a ratio of sums? The percentile bootstrap over prompts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from allotment.types import FloatArray

RESAMPLES = 2000
LEVEL = 0.95
AT_ONCE = 2**22
"""Entries of the resampling matrix that are held at once."""


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % interval; NaN where there is none."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, resampled_R: FloatArray) -> Interval:
        """The percentile interval of ``resampled_R`` [R]; resamples that are NaN are left out."""
        known_R = resampled_R[~np.isnan(resampled_R)]
        if not len(known_R):
            return cls(value, math.nan, math.nan)
        tail = (1 - LEVEL) / 2
        low, high = np.quantile(known_R, [tail, 1 - tail], method="inverted_cdf")  # infinite values stay what they are
        return cls(value, float(low), float(high))


def resampled_sums(values_MC: FloatArray, resamples: int = RESAMPLES, seed: int = 0) -> FloatArray:
    """[R, C] column sums over M prompts drawn with replacement, ``resamples`` times.

    All visits of a prompt come and go together: they share its success probability, and are no independent evidence.

    Args:
        values_MC: [M, C] what each prompt adds to each sum, M >= 1.
        resamples: R.
        seed: fixes the draws.
    """
    rng, n_prompts = np.random.default_rng(seed), len(values_MC)
    share = np.full(n_prompts, 1 / n_prompts)
    rows = max(AT_ONCE // n_prompts, 1)
    parts = [
        rng.multinomial(n_prompts, share, size=min(rows, resamples - start)) @ values_MC
        for start in range(0, resamples, rows)
    ]
    return np.concatenate(parts)
