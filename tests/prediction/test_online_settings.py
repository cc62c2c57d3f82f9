"""Hyper-parameters learnt online, on values and counts simulated from the model itself: fixed seeds, wide margins."""

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
from scipy.spatial.distance import cdist, pdist
from scipy.special import expit
from scipy.stats import norm

from allotment.prediction import HierarchicalPredictor, HierarchicalRegression
from allotment.prediction.binomial import log_predictive

PROMPTS, BATCH, STEPS, WARM_UP, NOISE, RANK = 150, 24, 45, 15, 0.1, 32
REGRET = 15.0
"""Nats that learning may cost over the 30 steps of 24 observations after the warm-up."""


@dataclass(frozen=True)
class World:
    """The truth, and which candidate bandwidth it has (-1: embeddings tell nothing)."""

    scale: float = 0.0
    own: float = 0.1
    drift: float = 0.0
    bandwidth: float = 1.0
    candidate: int = -1

    @property
    def settings(self):
        own = {"unseen_variance": self.own, "prompt_variance": self.own, "prompt_drift": self.drift}
        return {**own, "scale": max(self.scale, 1e-3), "bandwidth": self.bandwidth, "learn": False}


WORLDS = {
    "own effects": World(own=1.0),
    "small own effects": World(own=0.03),
    "fast drift": World(own=0.5, drift=0.02),
    "embeddings tell": World(scale=2.0, candidate=1),
    "narrow": World(scale=2.0, bandwidth=0.5, candidate=0),
    "wide": World(scale=2.0, bandwidth=2.0, candidate=2),
}
WRONG = {
    "where learning starts": {},
    "much drift": {"prompt_drift": 0.1},
    "large own effects": {"unseen_variance": 8.0, "prompt_variance": 8.0},
    "no embeddings": {"scale": 1e-3},
}
START = HierarchicalRegression.DEFAULTS


def simulate(world, seed=0):
    """Embeddings [N, 2], and for every step (rows [B], latent values [B])."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(PROMPTS, 2)).astype(np.float32)
    h = world.bandwidth * np.median(pdist(x))
    covariance = world.scale**2 * np.exp(-(cdist(x, x) ** 2) / (2 * h * h)) + world.own * np.eye(PROMPTS)
    f = 0.5 + np.linalg.cholesky(covariance) @ rng.normal(size=PROMPTS)
    steps = []
    for _ in range(STEPS):
        rows = rng.choice(PROMPTS, BATCH, replace=False)
        steps.append((rows, f[rows]))
        f = f + np.sqrt(world.drift) * rng.normal(size=PROMPTS)
    return x, steps


def run_values(x, steps, **settings):
    """Log predictive likelihood of the values after the warm-up, and the predictor."""
    predictor, rng, total = HierarchicalRegression(x, rank=RANK, **settings), np.random.default_rng(1), 0.0
    for step, (rows, f) in enumerate(steps):
        values = f + np.sqrt(NOISE) * rng.normal(size=BATCH)
        mean, variance = predictor.predict(rows)
        if step >= WARM_UP:
            total += norm.logpdf(values, mean, np.sqrt(variance + NOISE)).sum()
        predictor.observe(rows, values, np.full(BATCH, NOISE))
    return total, predictor


@cache
def learnt_in(name):
    return run_values(*simulate(WORLDS[name]))


@pytest.mark.parametrize("name", WORLDS)
def test_learning_is_as_good_as_any_fixed_setting(name):
    x, steps = simulate(WORLDS[name])
    learnt, _ = learnt_in(name)
    for wrong, settings in {"truth": WORLDS[name].settings, **WRONG}.items():
        fixed, _ = run_values(x, steps, **{"learn": False, **settings})
        assert learnt > fixed - REGRET, wrong


@pytest.mark.parametrize("name", WORLDS)
def test_learning_goes_to_the_truth(name):
    world = WORLDS[name]
    model = learnt_in(name)[1]._model
    member = model.members[model.member.best]
    if world.candidate >= 0:
        assert member.bandwidth == world.candidate
        assert member.scale >= START.scale
    else:
        assert member.scale <= START.scale
    own, drift = model.prompt_variance.mean, model.prompt_drift.mean
    assert abs(np.log(own / world.own)) < np.log(4.5)
    assert (drift > 0.01) if world.drift else (drift < 10 * START.prompt_drift)


def test_the_drift_of_the_level_is_learnt():
    rng, own = np.random.default_rng(0), np.random.default_rng(1).normal(size=400)
    for truth, low, high in ((0.0, 0.0, 1e-4), (0.01, 4e-3, 1.1e-2)):
        predictor, level = HierarchicalRegression(), 0.0
        for _ in range(150):
            rows = rng.choice(400, 32, replace=False)
            predictor.observe(rows, level + own[rows] + np.sqrt(NOISE) * rng.normal(size=32), np.full(32, NOISE))
            level += np.sqrt(truth) * rng.normal()
        assert low <= predictor._model.level_drift.mean <= high


class TestCounts:
    """The same through binomial counts, with the settings that prompts start from."""

    @staticmethod
    def run(x, steps, **settings):
        predictor, rng, total = HierarchicalPredictor(x, rank=RANK, **settings), np.random.default_rng(2), 0.0
        for step, (rows, f) in enumerate(steps):
            successes, trials = rng.binomial(8, expit(f)), np.full(BATCH, 8)
            belief = predictor.predict(rows)
            if step >= 3:
                total += log_predictive(belief.mean, belief.variance, successes, trials).sum()
            predictor.observe(rows, successes, trials)
        return total, predictor

    def test_embeddings_that_tell_are_used(self):
        x, steps = simulate(replace(WORLDS["embeddings tell"], own=0.5))
        learnt, predictor = self.run(x, steps)
        assert predictor._model.members[predictor._model.member.best].scale > 0
        assert predictor._model.prompt_variance.mean < 0.5 * HierarchicalPredictor.DEFAULTS.prompt_variance
        assert learnt > self.run(x, steps, learn=False, scale=1e-3)[0] + 5
        assert learnt > self.run(x, steps, learn=False, prompt_drift=0.3)[0] + 20

    def test_embeddings_that_tell_nothing_do_no_harm(self):
        x, steps = simulate(World(own=3.0))
        learnt, _ = self.run(x, steps)
        assert learnt > self.run(None, steps)[0] - 3
        assert learnt > self.run(x, steps, learn=False, scale=4.0, unseen_variance=0.5, prompt_variance=0.5)[0] + 20
