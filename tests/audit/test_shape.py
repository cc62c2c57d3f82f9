"""How many prompts for some rollouts: the model by simulation, the numbers against what they are made of."""

import math

import numpy as np
import pytest
from audit_cases import Believed, simulated

from allotment.audit import Log, Settings, replay
from allotment.audit.shape import Tokens, best, group_sizes, noise, shapes
from allotment.pricing import ShrinkagePrice

MEAN, VARIANCE, UNSURE = 0.25, 0.25 * 0.75 * 4 / 5, 0.25 * 0.75 / 5
"""Of Beta(1, 3): E[p], E[p (1 - p)], Var p."""


def measured(p, trials, kappa=1.5):
    """What a log of one visit each says of prompts with these success probabilities, believed to be Beta(1, 3)."""
    rng, many = np.random.default_rng(0), np.arange(len(p))
    log = Log(tuple(many.tolist()), many, np.ones_like(many), rng.binomial(trials, p), np.broadcast_to(trials, len(p)))
    return noise(replay(log, Believed(1.0, 3.0), Settings(8, 1, 32, "shrinkage", batch=len(p))), kappa)


@pytest.mark.parametrize(("prompts", "n"), [(4, 1), (4, 2), (2, 5)])
def test_the_variance_is_that_of_drawn_steps(prompts, n):
    """Steps of a pool whose gradients, of either sign, cancel: then the bound between prompts is the variance."""
    rng, steps, kappa = np.random.default_rng(1), 200_000, 1.5
    pool = np.array([0.05, 0.5, 0.6, 0.9])
    p = pool[rng.integers(4, size=(steps, prompts))]
    share = ShrinkagePrice(np.array([VARIANCE]), np.array([UNSURE])).shares(np.array([n]))[0]
    rewards = (rng.random((steps, prompts, n)) < p[..., None]).astype(float)
    others = (rewards.sum(-1, keepdims=True) - rewards) / max(n - 1, 1)
    signs = rng.choice((-1.0, 1.0), size=(2, steps, prompts, n))
    gradient = math.sqrt(kappa) * p * (1 - p) * signs[0, :, :, 0]
    found = measured(np.repeat(pool, 20_000), 4, kappa)
    for baseline, within in ((others, found.rloo), (share * MEAN + (1 - share) * others, found.shrinkage)):
        if n == 1 and baseline is others:
            assert within(1) == math.inf
            continue
        drawn = (gradient + ((rewards - baseline) * signs[1]).mean(-1)).mean(-1).var()
        assert (found.between + within(n)) / prompts == pytest.approx(drawn, rel=0.02)


def test_what_few_rollouts_do_not_tell_is_as_believed():
    p = np.random.default_rng(2).beta(1.0, 3.0, 50_000)  # the belief is right
    whole = measured(p, 8)
    for trials in (1, 3):
        part = measured(p, trials)
        assert (part.from_belief, whole.from_belief) == (1.0, 0.0)
        assert part.between == pytest.approx(whole.between, rel=0.03)
        for n in (2, 8):
            assert part.rloo(n) == pytest.approx(whole.rloo(n), rel=0.03)
            assert part.shrinkage(n) == pytest.approx(whole.shrinkage(n), rel=0.03)
    mixed = measured(p, np.where(np.arange(50_000) % 2, 8, 1))
    assert mixed.from_belief == 0.5
    assert mixed.between == pytest.approx(whole.between, rel=0.03)


def test_shapes_are_relative_to_the_logs_own():
    found = measured(np.random.default_rng(3).beta(0.5, 0.5, 2000), 8)
    own, shaped = shapes(found, (16, 8), 128, available=64, tokens=Tokens(100.0, 50.0))
    assert own.rloo == pytest.approx(1.0)
    assert own == shaped[3]
    assert [(s.prompts, s.rollouts_per_prompt) for s in shaped] == [(128 >> i, 1 << i) for i in range(7)]
    assert [s.is_possible for s in shaped] == [False, *[True] * 6]
    unit = (found.between + found.rloo(8)) / 16
    for s in shaped:
        n = s.rollouts_per_prompt
        assert s.between == pytest.approx(found.between / s.prompts / unit)
        assert s.shrinkage == pytest.approx((found.between + found.shrinkage(n)) / s.prompts / unit)
        assert s.rloo == (None if n == 1 else pytest.approx((found.between + found.rloo(n)) / s.prompts / unit))
        assert (s.completion_tokens, s.prefill_tokens) == (12_800, 50 * s.prompts)
    _, doubled = shapes(found, (16, 8), 256, available=999, tokens=Tokens())
    assert doubled[0].shrinkage == pytest.approx(shaped[0].shrinkage / 2)
    assert doubled[0].tokens is None
    single, _ = shapes(found, (128, 1), 128, available=999, tokens=Tokens())
    assert (single.rloo, single.shrinkage) == (None, pytest.approx(1.0))


@pytest.mark.parametrize("prompt", [0.1, 100.0, 10_000.0])
@pytest.mark.parametrize("estimator", ["rloo", "shrinkage"])
def test_the_best_has_the_least_variance_at_the_same_cost(estimator, prompt):
    found = measured(np.random.default_rng(4).beta(0.5, 0.5, 2000), 8)
    own, shaped = shapes(found, (16, 8), 100, available=60, tokens=Tokens(100.0, prompt))
    within = getattr(found, estimator)
    for cost, of_a_prompt in (("rollouts", lambda n: n), ("tokens", lambda n: 100 * n + prompt)):
        least = min(
            (found.between + within(n)) * of_a_prompt(n) / ((found.between + found.rloo(8)) * of_a_prompt(8))
            for n in group_sizes(100, 8)
            if 100 // n <= 60
        )
        assert best(own, shaped, estimator, cost).variance == pytest.approx(least)
    if prompt == 10_000:  # a prompt is dear: fewer of them
        free, dear = (best(own, shaped, estimator, cost).shape.prompts for cost in ("rollouts", "tokens"))
        assert dear < free


def test_nothing_is_advised_where_nothing_is_known():
    log, _ = simulated(np.random.default_rng(5), n_prompts=20, n_visits=1)
    found = noise(replay(log, Believed(1.0, 1.0), Settings(8, 1, 32, "shrinkage", batch=20)), 1.5)
    own, shaped = shapes(found, (20, 8), 160, available=20, tokens=Tokens(10.0))
    assert best(own, shaped, "rloo", "tokens") is None
    assert best(own, shaped, "rloo", "rollouts") is not None
    assert best(own, shaped[:1], "rloo", "rollouts") is None
    assert group_sizes(3, 8) == (1, 2)
    assert group_sizes(12, 6) == (1, 2, 4, 6, 8)
    assert group_sizes(10_000, 8)[-1] == 64


def test_intervals_cover_the_truth():
    """Of many made logs of few prompts, against a log so large that it knows."""

    def made(seed, prompts):
        rng, many = np.random.default_rng(seed), np.arange(prompts)
        rewards = rng.binomial(8, rng.beta(0.5, 0.5, prompts))
        log = Log(tuple(many.tolist()), many, np.ones_like(many), rewards, np.full(prompts, 8))
        return noise(replay(log, Believed(0.5, 0.5), Settings(8, 1, 32, "shrinkage", batch=prompts)), 1.5)

    known = made(1, 100_000)
    own = (known.between + known.rloo(8)) / 16
    covered = []
    for seed in range(100):
        _, shaped = shapes(made(100 + seed, 100), (16, 8), 128, available=999, tokens=Tokens(), seed=seed)
        for s in shaped[:4]:
            truth = (known.between + known.shrinkage(s.rollouts_per_prompt)) / s.prompts / own
            covered.append(s.shrinkage_interval.low <= truth <= s.shrinkage_interval.high)
    assert 0.90 <= np.mean(covered) <= 0.98
