"""Configurations of the lab, and what it can carry out. Importing this loads no torch."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import tyro
from pydantic import AfterValidator, Field, model_validator

from allotment.config import (
    Config,
    JSONObject,
    ObjectiveName,
    RunConfig,
    by_name,
    check_bounds,
)
from allotment.lab.design_names import check_design_name
from allotment.lab.designs import Design
from allotment.planning.contract import Capability
from allotment.registry import PLANNERS

RegimeName = Literal["scratchpad", "short", "countdown", "pronunciation"]
PoolName = Literal["mixture", "generated"]
OptimizerName = Literal["adamw", "sgd"]
RewardName = Literal["correctness", "format", "length"]
ActorName = Literal["current", "stale", "rounds", "quantised", "small"]
SketchName = Literal["exact", "last-block", "last-layer"]
CAPABILITY = Capability(
    "the lab",
    several_rounds=True,
    in_tokens=True,
    any_size=True,
    own_advantages=frozenset({"second_look"}),
    told=frozenset({"scores", "lengths", "answers"}),
    columns=frozenset({"truncated", "entropies", "clip_fractions", "answers"}),
    looks_back=True,
    offers=frozenset({"embeddings", "success_probability"}),
)
"""What the lab can carry out: everything."""
MEASUREMENT = Capability(
    "the measurement of gradient variance",
    selections=False,
    told=frozenset({"scores"}),
    offers=frozenset({"embeddings", "success_probability"}),
)
"""The variance of one round of exact counts."""
MeasuredName = Annotated[str, AfterValidator(lambda name: check_design_name(name, MEASUREMENT)), by_name(PLANNERS)]


class TrainConfig(RunConfig):
    """Reinforcement learning of the lab's language model."""

    trainer: Annotated[Literal["lab"], tyro.conf.Suppress] = "lab"
    candidate_prompts: int | None = Field(None, ge=1)
    """Prompts that the planner is asked for at a step; by default more than prompts_per_step only for planners that
    choose among them (16 times for joint and spo, 4 times for dapo, mopps and pilot-commit, twice for greso)."""
    objective: tuple[ObjectiveName, ...] = ()
    """What is learnt from the rollouts; several names where they fill different places: advantages (rloo, dr_grpo,
    grpo, gdpo, jspo, krpo), the loss (divergence-ppo, flowrl, on-policy-dpo), gates on tokens (jackpot, capo), a
    learnt reward for the verifier's (representation-reward, ml-irl). By default the clipped surrogate with the
    estimator's advantages."""
    objective_settings: JSONObject = Field(default_factory=dict)
    """Further settings of the objectives by name, such as '{"divergence-ppo": {"delta": 0.15}}'."""
    updates: int = Field(1, ge=1)
    """Optimiser steps on the rollouts of a step."""
    rewards: tuple[RewardName, ...] = Field(("correctness",), min_length=1)
    """Rewards that advantages are made of; added up, or combined by gdpo. The planner is told correctness."""
    length_target: int = Field(10, ge=1)
    """Most tokens of a completion that the reward `length` accepts."""
    actor: ActorName = "current"
    """Who generates: the policy that is trained, one that has fallen behind it (stale, rounds), one with rounded
    weights, or a smaller one."""
    actor_settings: JSONObject = Field(default_factory=dict)
    """Further settings of the actor, such as '{"lag": 8}'."""
    regime: RegimeName = "scratchpad"
    """Form of a completion: free characters before the answer, or the answer alone; countdown and pronunciation are
    tasks of their own, with several right answers to a prompt, pronunciation with a trained model of another's."""
    pool: PoolName = "mixture"
    """Prompts that are trained on: those of the mixture, which come back every epoch, or tens of thousands of generated
    ones in one pass, each at most once; of pronunciation 2,000 words or 100,000."""
    aggregation: Literal["prompt_mean", "sequence_mean", "token_mean"] = "prompt_mean"
    """How token losses become one number; see docs/weights.md before changing it."""
    optimizer: OptimizerName = "adamw"
    """Who takes the step: AdamW, or plain gradient descent (no momentum), which wants far larger learning rates."""
    clip_norm: float = Field(1.0, gt=0, allow_inf_nan=False)
    """Largest norm of the gradient."""
    tokens_per_rollout: float = Field(9.6, gt=0, allow_inf_nan=False)
    """For vip-tokens: a step may use this times the rollouts of a step; 9.6 is what the scratchpad policy writes."""
    sketch: SketchName = "last-block"
    """Score sketches that vip-moments is told: of the gradient of one matrix, in the last block or the last of all, or
    of the whole gradient, slowly."""
    sketches: int = Field(16, ge=1, le=16)
    """Numbers of a sketch."""

    @model_validator(mode="after")
    def _rewards_are_different(self) -> Self:
        if len(set(self.rewards)) < len(self.rewards):
            raise ValueError(f"each reward once, got {', '.join(self.rewards)}")
        return self

    @model_validator(mode="after")
    def _pool_is_of_the_task(self) -> Self:
        if self.pool == "generated" and self.regime == "countdown":
            raise ValueError("generated pools are of the regimes scratchpad or short, and pronunciation, got countdown")
        return self

    @property
    def asked_prompts(self) -> int:
        """Prompts that the planner is asked for at each step."""
        return self.candidate_prompts or self.prompts_per_step * PLANNERS[self.planner].candidates

    @property
    def task(self) -> str:
        """What is trained, in a word."""
        return self.regime

    @property
    def weighting(self) -> str:
        """Advantage and aggregation, in words."""
        return f"{self.priced}, {self.aggregation.replace('_', ' ')}"


class GradientVarianceConfig(Config):
    """Measurement of gradient variance at a fixed policy, per planner."""

    regime: RegimeName = "scratchpad"
    """Form of a completion, and task and policy that go with it; as for training."""
    history: int = Field(32, ge=0)
    """Past rollouts of every prompt that the predictors have seen, in visits of 8 at most."""
    planners: tuple[MeasuredName, ...] = Field(
        (
            *("uniform", "uniform-2x", "uniform-64x2", "uniform-128x1"),
            *("oracle", "neyman", "vip", "vip-moments", "vip-paper", "joint"),
        ),
        min_length=1,
    )
    """Names as for training, and uniform-2x (twice the budget), neyman (knows the gradient moments). What follows a
    name makes another step of it: uniform-64x2, 64 prompts with 2 rollouts each; vip-64x2-shrinkage, with the belief as
    baseline (uniform-128x1: with one mean for all prompts); joint-of-128, chosen among 128."""
    batches: int = Field(12, ge=2)
    """Disjoint batches of prompts; the standard error of `ratio` is over them."""
    prompts: int = Field(64, ge=2)
    """Prompts of a batch."""
    prompts_per_step: int = Field(16, ge=1)
    """Prompts of a step whose whole variance is measured, where the planner's name does not say."""
    candidates: int | None = Field(None, ge=1)
    """Prompts that joint chooses among at a step; by default as in training, 16 times prompts_per_step, or all there
    are."""
    steps: int = Field(96, ge=2)
    """Random steps of each planner at least, over which its whole variance is averaged."""
    rollouts: int = Field(192, ge=16)
    """Rollouts of each prompt, from which the moments of its rewards and gradients are measured."""
    directions: int = Field(0, ge=0)
    """Random directions of the parameter space, along which gradients are measured; 0 takes all into account."""
    sketch: SketchName = "exact"
    """Score sketches that vip-moments sees in its history: of the whole gradient, or of that of one matrix."""
    sketches: int = Field(16, ge=1, le=16)
    """Numbers of a sketch: random directions, others than those above."""
    rollouts_per_prompt: int = Field(8, ge=3)
    """Mean number of rollouts that is allocated."""
    bounds: tuple[int, int] = (3, 32)
    """Least and most rollouts of a prompt; the least is 1 with a belief as baseline, and N where a name says PxN below
    it."""
    seed: int = Field(0, ge=0)
    """Fixes prompts, rollouts, directions and sketches."""

    @property
    def measured_prompts(self) -> int:
        """Prompts whose gradients are measured: the pool that steps draw from."""
        return self.batches * self.prompts

    @property
    def designs(self) -> tuple[Design, ...]:
        """What ``planners`` name."""
        return tuple(Design.of(name, self) for name in self.planners)

    @model_validator(mode="after")
    def _can_be_measured(self) -> Self:
        check_bounds(self.bounds, self.rollouts_per_prompt, "rloo")
        if len(set(self.planners)) < len(self.planners):
            raise ValueError(f"each planner once, got {', '.join(self.planners)}")
        _ = self.designs  # raises where one cannot be made
        return self
