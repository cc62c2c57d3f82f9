"""Learning a hyper-parameter online: candidates compete by what they would have predicted."""

from __future__ import annotations

import numpy as np
from scipy.special import softmax

from allotment.types import FloatArray

TIE = 1e-6
"""Log likelihood ratio below which two candidates are equal."""


class Candidates:
    """Values of one hyper-parameter, each with a log-normal prior and the predictive log likelihood it has earned.

    What was earned fades by ``forgetting`` at every step, so that a hyper-parameter can change during training; the
    prior does not.
    """

    def __init__(self, values_J: FloatArray, log_prior_J: FloatArray, forgetting: float) -> None:
        self.values = values_J
        self.log_prior = log_prior_J - log_prior_J.max()
        self.forgetting = forgetting
        self.evidence = self.log_prior

    def observe(self, log_likelihood_J: FloatArray) -> None:
        """Add the log likelihood of a step's outcomes under each candidate; all [J]."""
        evidence_J = self.log_prior + self.forgetting * (self.evidence - self.log_prior) + log_likelihood_J
        self.evidence = evidence_J - evidence_J.max()

    @property
    def mean(self) -> float:
        """Mean of the values under their posterior weights."""
        return float(softmax(self.evidence) @ self.values)

    @property
    def best(self) -> int:
        """Index of the candidate with the most evidence; the first of equals, whatever the last bits of a sum."""
        return int((self.evidence >= self.evidence.max() - TIE).argmax())


def around(centre: float, factor: float, below: int, above: int, spread: float) -> tuple[FloatArray, FloatArray]:
    """Values ``centre * factor^j``, ``-below <= j <= above``, and their log prior ``-(j ln factor / spread)^2 / 2``."""
    log_J = np.arange(-below, above + 1) * np.log(factor)
    return centre * np.exp(log_J), -0.5 * (log_J / spread) ** 2
