"""Where the hyper-parameters of the hierarchical model start, and the candidates among which they are learnt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from allotment.checks import check_setting
from allotment.types import FloatArray

BANDWIDTHS = np.array([0.5, 1.0, 2.0])
"""Candidate bandwidths, in units of the setting."""


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters: where they start (``learn``) or what they are. Variances in squared units of f."""

    rank: int = 128
    """Landmarks of the low-rank Gaussian process, M."""
    memory: float = 3000.0
    """Steps after which evidence about level and weights has faded to 1/e; inf never forgets."""
    prior_mean: float = 0.0
    """Mean of the level c."""
    prior_variance: float = 1.0
    """Variance of the level c."""
    level_drift: float = 1e-5
    """Variance per step of the drift d."""
    scale: float = 2.0
    """Standard deviation of the Gaussian process on embeddings."""
    bandwidth: float = 1.0
    """Its kernel bandwidth, in median distances between landmarks."""
    unseen_variance: float = 4.0
    """Variance s of the own effect of a prompt without a record: how far the common opinion is off."""
    prompt_variance: float = 8.0
    """Variance s for prompts with a record: how weakly a record is pulled to the common opinion. In a normal world the
    two are one; real difficulties have heavier tails, and a broader prior predicts second visits better."""
    prompt_drift: float = 1e-3
    """Variance per step of the random walk of a prompt's own effect."""
    learn: bool = True
    """Whether all but the first four are learnt online, by the likelihood that each step's outcomes had before."""


def checked_settings(settings: Mapping[str, Any]) -> Settings:
    """Raises :class:`InvalidInputError` where a setting is unknown or out of its range."""
    names = [field.name for field in fields(Settings)]
    unknown = sorted(settings.keys() - set(names))
    check_setting("setting", unknown, not unknown, ", ".join(names))
    for name in settings.keys() - {"rank", "learn"}:
        is_number = isinstance(settings[name], int | float) and not isinstance(settings[name], bool)
        check_setting(name, settings[name], is_number, "a number")
    checked = Settings(**settings)
    check_setting("rank", checked.rank, isinstance(checked.rank, int) and checked.rank >= 1, "a whole number >= 1")
    check_setting("memory", checked.memory, checked.memory > 0, "a positive number of steps, or inf")
    check_setting("prior_mean", checked.prior_mean, bool(np.isfinite(checked.prior_mean)), "a finite number")
    check_setting("learn", checked.learn, isinstance(checked.learn, bool), "True or False")
    for name in ("prior_variance", "scale", "bandwidth", "unseen_variance", "prompt_variance"):
        check_setting(name, settings[name], 0 < settings[name] < np.inf, "a positive number")
    for name in ("prompt_drift", "level_drift"):
        check_setting(name, settings[name], 0 <= settings[name] < np.inf, "a number >= 0")
    return checked


@dataclass(frozen=True)
class Member:
    """One candidate Gaussian process: index of the bandwidth (-1: no features, scale 0) and scale."""

    bandwidth: int
    scale: float


def members(settings: Settings, rank: int) -> list[Member]:
    """The candidate Gaussian processes; ``rank`` is the number of landmarks, 0 without embeddings."""
    if not rank:
        return [Member(-1, 0.0)]
    if not settings.learn:
        return [Member(0, settings.scale)]
    scales = settings.scale * np.array([0.5, 1.0, 2.0])
    return [Member(-1, 0.0), *(Member(b, float(s)) for b in range(len(BANDWIDTHS)) for s in scales)]


def bandwidth_factors(settings: Settings) -> FloatArray:
    """[H] candidate bandwidths in median distances."""
    return settings.bandwidth * (BANDWIDTHS if settings.learn else np.ones(1))


def log_normal_grid(
    centre: float, factor: float, below: int, above: int, spread: float
) -> tuple[FloatArray, FloatArray]:
    """Values ``centre * factor^j``, ``-below <= j <= above``, and their log prior ``-(j ln factor / spread)^2 / 2``."""
    log_J = np.arange(-below, above + 1) * np.log(factor)
    return centre * np.exp(log_J), -0.5 * (log_J / spread) ** 2
