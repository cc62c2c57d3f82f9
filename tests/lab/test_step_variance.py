"""The variance of whole steps against brute force: every draw of prompts, and simulated updates."""

from itertools import combinations

import numpy as np
import pytest
import torch

from allotment.lab.gradient_measurement import Measured
from allotment.lab.gradient_moments import BaselineMoments, Moments
from allotment.lab.step_variance import Judge, factors
from allotment.learning import baseline_advantages, rloo_advantages
from allotment.planning import VIP, make_planner
from allotment.types import Plan

DIRECTIONS, POPULATION = 3, 60


class Toy:
    """Prompts whose rollouts are all there is; what a judge is told of them is exact."""

    def __init__(self, n_prompts, seed=0):
        random = np.random.default_rng(seed)
        p_Q1 = np.linspace(0.1, 0.9, n_prompts)[:, None]
        self.rewards = (random.random((n_prompts, POPULATION)) < p_Q1).astype(float)
        scores = random.normal(size=(n_prompts, POPULATION, DIRECTIONS)) + self.rewards[:, :, None]
        self.scores = scores - scores.mean(1, keepdims=True)
        self.p = self.rewards.mean(1)
        self.gradients = ((self.rewards - self.p[:, None])[:, :, None] * self.scores).mean(1)
        squared = (self.gradients**2).sum(1)
        exact = BaselineMoments.joined(
            [BaselineMoments.of(*of) for of in zip(self.p, self.rewards, self.scores, squared, strict=True)]
        )
        halves = Moments.of(self.rewards, self.scores)
        self.ids = tuple(f"p{q}" for q in range(n_prompts))
        self.measured = Measured(self.ids, (halves, halves), (exact, exact), self.gradients.astype(np.float32))

    def squared_errors(self, plan, draws, random):
        """[draws] of updates by one plan: rollouts anew, the advantages and factors that trainers use."""
        rows = np.repeat([self.ids.index(i) for i in plan.prompt_ids], plan.counts)
        places = np.repeat(np.arange(len(plan.counts)), plan.counts)
        chosen = random.integers(POPULATION, size=(draws, len(rows)))
        rewards = torch.from_numpy(self.rewards[rows, chosen].ravel())
        groups = torch.from_numpy((np.arange(draws)[:, None] * len(plan.counts) + places).ravel())
        if plan.baselines is None:
            advantages = rloo_advantages(rewards, groups)
        else:
            given = (torch.from_numpy(np.tile(x[places], draws)) for x in (plan.baselines, plan.baseline_shares))
            advantages = baseline_advantages(rewards, groups, *given)
        weight_N = (factors(plan) / np.maximum(plan.counts, 1))[places]
        each = (weight_N * advantages.numpy().reshape(draws, -1))[:, :, None] * self.scores[rows, chosen]
        return ((each.sum(1) - self.gradients.mean(0)) ** 2).sum(1)


def test_between_is_the_squared_distance_of_gradients():
    toy, random = Toy(9), np.random.default_rng(1)
    judge = Judge(toy.measured)
    for size in (1, 4, 9):
        rows, weights = random.permutation(9)[:size], random.random(size)
        distance = weights @ toy.gradients[rows] - toy.gradients.mean(0)
        assert judge.between(rows, weights) == pytest.approx(distance @ distance, rel=1e-4)


@pytest.mark.parametrize("size", [1, 3, 6])
def test_between_of_even_steps_is_the_mean_over_all_draws(size):
    toy = Toy(6)
    judge = Judge(toy.measured)
    every = [judge.between(np.array(rows), np.full(size, 1 / size)) for rows in combinations(range(6), size)]
    assert judge.between_even(size) == pytest.approx(np.mean(every), abs=1e-7)


def even(ids, n):
    return Plan(ids, np.full(len(ids), n), step=0)


def test_passes_of_uniform_steps_are_the_closed_form():
    toy = Toy(12)
    judge = Judge(toy.measured)
    step = judge.over_passes(lambda rows: (even(tuple(toy.ids[r] for r in rows), 3),) * 2, 4, steps=7, seed=0)
    assert step.total == pytest.approx(judge.uniform(4, 3))
    assert step.se < 1e-12


PLANNERS = {
    "joint": lambda: VIP(budget=30, bounds=(1, 8), estimator="shrinkage", choose="prompts"),
    "joint, rloo": lambda: VIP(budget=30, bounds=(2, 8), choose="prompts"),
    "all prompts, shrinkage": lambda: VIP(budget=30, bounds=(1, 8), estimator="shrinkage"),
    "mopps": lambda: make_planner("mopps", budget=30, bounds=(3, 8), trained_prompts=5),
}


@pytest.mark.parametrize("name", PLANNERS)
def test_between_and_within_are_the_error_of_real_updates(name):
    toy, planner, random = Toy(16), PLANNERS[name](), np.random.default_rng(3)
    planner.predictor.observe(toy.ids, random.binomial(4, toy.p), np.full(16, 4))
    judge, apart, noise, said = Judge(toy.measured), [], [], []
    for _ in range(30):
        plan = planner.ask(toy.ids)
        planner.cancel(plan)
        rows = np.array([toy.ids.index(i) for i in plan.prompt_ids])
        _, within = judge.step(16, (plan, plan))
        said.append(judge.between(rows, factors(plan)) + within)
        errors = toy.squared_errors(plan, 400, random)
        apart.append(errors.mean() - said[-1])
        noise.append(errors.var() / len(errors))
    assert abs(np.mean(apart)) < 4 * np.sqrt(np.sum(noise)) / len(noise)
    assert np.sqrt(np.sum(noise)) / len(noise) < 0.03 * np.mean(said)  # a test that can fail


def test_each_half_judges_the_plan_that_has_not_seen_it():
    toy = Toy(4)
    (first, second), exact = (even(toy.ids, n) for n in (2, 6)), toy.measured.baseline_halves[0]
    between, within = Judge(toy.measured).step(4, (first, second))
    expected = [exact.variance(np.full(4, n), None, None).sum() / 16 for n in (2, 6)]
    assert between == 0.0
    assert within == pytest.approx(np.mean(expected))
