"""The loop: ask -> generate -> verify -> advantage -> loss -> step -> tell.

Batches and random numbers are functions of (seed, step), so a run resumes bit for bit and runs of equal seed but
different planners are paired: same prompts in the same order.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from allotment.errors import ConfigError
from allotment.lab.actors import Learnt, make_actor
from allotment.lab.beliefs import NO_BELIEFS, Beliefs, second_look
from allotment.lab.checkpoint import load_lab, load_parameters, parameters_state
from allotment.lab.config import CAPABILITY, TrainConfig
from allotment.lab.generation import Lab, Rollouts, many_answers, seeded_generator
from allotment.lab.judges import make_judge, named_rewards
from allotment.lab.learner import Learner
from allotment.lab.planners import make_planner, make_training_selector
from allotment.lab.recent import Recent, Visit
from allotment.lab.scores import sketch_named
from allotment.lab.step_rows import Metrics, rollout_rows, step_metrics
from allotment.learning import (
    Length,
    advantage_estimator,
    baseline_advantages,
    check_believed,
    group,
    rollout_weights,
    second_look_advantages,
)
from allotment.learning.selected import selected_advantages_and_weights
from allotment.planning import Planner
from allotment.planning.contract import check_planner
from allotment.run_logs.directory import RunDirectory
from allotment.selection import Selection, check_selection, emptied_groups
from allotment.state import State, Stateful
from allotment.tasks.countdown import mixture_of
from allotment.tasks.mixture import Mixture, Problem
from allotment.types import IntArray, Plan


class Trainer:
    """One run of reinforcement learning in the lab; sets torch to one thread, for the same bits everywhere. Raises
    ConfigError: a step takes more prompts than the pool holds.
    """

    def __init__(self, config: TrainConfig, lab: Lab | None = None, mixture: Mixture | None = None) -> None:
        torch.set_num_threads(1)
        self.config = config
        self.lab = load_lab(config.regime) if lab is None else lab
        self.mixture = mixture_of(config.regime, config.pool) if mixture is None else mixture
        _check_pool(config, len(self.mixture.pool))
        self.learner = Learner(self.lab, config)
        self.actor = make_actor(config, self.lab)
        self.judge = make_judge(config, self.lab, self.mixture)
        self.planner: Planner = make_planner(
            config.planner,
            self.lab,
            self.mixture.pool,
            budget=config.budget,
            bounds=config.limits,
            estimator=config.priced,
            tokens_per_rollout=config.tokens_per_rollout,
            seed=config.seed,
            trained_prompts=config.prompts_per_step,
            by_text=config.pool == "generated",
            **config.planner_settings,
        )
        check_planner(self.planner, CAPABILITY)
        is_mean = config.aggregation == "token_mean"
        self._length: Length = "mean" if is_mean else "sum"  # "sum" keeps E[p], docs/weights.md
        if self.planner.contract.baselines:
            check_believed(config.aggregation, self._length)
        has_use = "scores" in self.planner.contract.told
        self.sketch = sketch_named(config.sketch, self.lab, config.sketches, config.seed) if has_use else None
        self.selector = make_training_selector(self.planner, config)
        self.recent = Recent(1 if self.selector is None else self.selector.window, self.mixture.pool)
        self.rollouts_total = self.tokens_total = 0

    def run(self, directory: RunDirectory, on_step: Callable[[Metrics], None] = lambda metrics: None) -> None:
        """Train to the last step, from the checkpoint if there is one; ``on_step`` sees every metrics line."""
        checkpoint = directory.load_checkpoint()
        if checkpoint is not None:
            with directory.reading():
                self.load_state_dict(checkpoint)
        first = 0 if checkpoint is None else checkpoint["step"]
        if first == 0:
            row = {"step": 0, "rollouts_total": 0, "tokens_total": 0, **self.evaluate()}
            directory.append("metrics.jsonl", [row])
            on_step(row)
        elif first < self.config.steps:
            directory.append("timing.jsonl", [{"step": first, "resumed": True}])
        for step in range(first + 1, self.config.steps + 1):
            started = time.perf_counter()
            row, rollout_rows = self.step(step)
            seconds = time.perf_counter() - started
            if step % self.config.evaluate_every == 0 or step == self.config.steps:
                row |= self.evaluate()
            directory.append("rollouts.jsonl", rollout_rows)
            directory.append("metrics.jsonl", [row])
            directory.append("timing.jsonl", [{"step": step, "seconds": round(seconds, 4)}])
            if step % self.config.checkpoint_every == 0 or step == self.config.steps:
                directory.save_checkpoint(self.state_dict(step))
            on_step(row)

    def step(self, step: int) -> tuple[Metrics, list[Metrics]]:
        """One batch of prompts; the metrics line and one line per prompt."""
        problems = self.batch(step)
        row_of = {p.id: row for row, p in enumerate(problems)}
        parts: list[Rollouts] = []
        plans: list[Plan] = []
        rows: list[Metrics] = []
        while True:
            plan = self.planner.ask([p.id for p in problems])
            counts_Q = np.zeros(len(problems), dtype=np.int64)
            counts_Q[[row_of[str(i)] for i in plan.prompt_ids]] = plan.counts
            part = self.generate(problems, counts_Q, seeded_generator(self.config.seed, step, plan.round))
            scores_NK = None if self.sketch is None else self.sketch(problems, part)
            lengths_N = part.mask_NT.sum(1).numpy()
            groups = [problems[g].id for g in part.group_N.tolist()]
            answers_N = part.answers_N
            self.planner.tell(plan, part.rewards_N, groups, scores=scores_NK, lengths=lengths_N, answers=answers_N)
            parts.append(part)
            plans.append(plan)
            rows += rollout_rows(step, plan, row_of, part)
            if self.planner.done:
                break
        rollouts = Rollouts.concatenate(parts)
        if self.planner.contract.own_advantages == "second_look":
            look = second_look(plans, parts, row_of)
            advantages_N = second_look_advantages(self.rewards(rollouts), rollouts.group_N, *look)
            learning = self.update(problems, rollouts, advantages_N, self.loss_weights(rollouts))
        else:
            learning = self.learn(Visit(step, tuple(problems), rollouts, self.rollouts_total), plans[0])
        if self.judge is not None:
            learning |= self.judge.learn(problems, rollouts)
        self.rollouts_total += len(rollouts)
        self.tokens_total += rollouts.n_tokens
        totals = {"rollouts_total": self.rollouts_total, "tokens_total": self.tokens_total}
        shown = {**step_metrics(plans[0], rows), **self._reward_metrics(rollouts), **learning}
        return {"step": step, **totals, **shown}, rows

    def generate(self, problems: list[Problem], counts_Q: IntArray, generator: torch.Generator) -> Rollouts:
        """Rollouts of the actor, with what the objective wants besides: whole distributions, random numbers."""
        actor, needs = self.actor.lab(), self.learner.objective.needs
        rollouts = actor.rollouts(problems, counts_Q, generator)
        if "distributions" in needs:
            with torch.no_grad():
                drawn = actor.outputs(problems, rollouts.group_N, rollouts.tokens_NT, rollouts.mask_NT)
            rollouts = replace(rollouts, distribution_NTV=drawn.distribution_NTV)
        if "uniforms" in needs:
            rollouts = replace(rollouts, uniforms_NT=torch.rand(rollouts.tokens_NT.shape, generator=generator))
        if self.judge is None:
            return rollouts
        judged = self.judge.judge(problems, rollouts)
        return replace(rollouts, rewards_N=judged.successes_N, verified_N=rollouts.rewards_N, judged_N=judged.rewards_N)

    def rewards(self, rollouts: Rollouts) -> torch.Tensor:
        """[N] the judge's rewards, or the sum of the configured ones."""
        return torch.stack(list(self._named_rewards(rollouts).values())).sum(0)

    def learn(self, visit: Visit, plan: Plan) -> Metrics:
        """Select among the rollouts of the step (and of those before it, where the selector looks back) and update."""
        self.recent.add(visit)
        problems, rollouts = self.recent.problems, self.recent.rollouts
        beliefs = Beliefs.of(plan, {p.id: row for row, p in enumerate(visit.problems)}, rollouts.group_N)
        advantages_N = self.advantages(rollouts, beliefs)
        if self.selector is None:
            return self.update(problems, rollouts, advantages_N, beliefs.weighted(self.loss_weights(rollouts)))
        scored = self.recent.scored(self.lab, advantages_N, visit.step / self.config.steps)
        selection = check_selection(self.selector.select(scored), scored)
        kept_N = torch.from_numpy(selection.is_kept)
        metrics = {
            "trained_rollouts": int(kept_N.sum()),
            "trained_tokens": int(rollouts.mask_NT[kept_N].sum()),
            "emptied_groups": emptied_groups(selection, scored),
        }
        if not kept_N.any():
            return {**metrics, "loss": 0.0, "gradient_norm": 0.0}
        advantages_N, weights_NT = self._selected(rollouts, selection, beliefs)
        weights_NT = beliefs.weighted(weights_NT)
        return {**metrics, **self.update(problems, rollouts.take(kept_N), advantages_N[kept_N], weights_NT[kept_N])}

    def advantages(self, rollouts: Rollouts, beliefs: Beliefs = NO_BELIEFS) -> torch.Tensor:
        """[N] advantages within whole groups, by the objective of the run or against the plan's baselines."""
        objective = self.learner.objective
        if beliefs.baseline_N is not None and beliefs.share_N is not None:
            given = self.rewards(rollouts), rollouts.group_N
            return baseline_advantages(*given, beliefs.baseline_N, beliefs.share_N)
        if objective.combined is not None:
            lengths_N = rollouts.mask_NT.sum(1)
            return objective.combined.advantages(self._named_rewards(rollouts), rollouts.group_N, lengths_N)
        return advantage_estimator(objective.advantage)(self.rewards(rollouts), rollouts.group_N)

    def loss_weights(self, rollouts: Rollouts) -> torch.Tensor:
        """[N, T] the weight of every token in the loss, all rollouts alike."""
        return rollout_weights(rollouts.group_N, rollouts.mask_NT, self.config.aggregation, length=self._length)

    def update(
        self, problems: list[Problem], rollouts: Rollouts, advantages_N: torch.Tensor, weights_NT: torch.Tensor
    ) -> Metrics:
        """The optimiser steps on the rollouts; groups whose rewards are all equal have zero advantage."""
        metrics = self.learner.update(problems, rollouts, advantages_N, weights_NT)
        return metrics | self.actor.after_step(Learnt(problems, rollouts, advantages_N, weights_NT))

    def _named_rewards(self, rollouts: Rollouts) -> dict[str, torch.Tensor]:
        if rollouts.judged_N is not None:
            return {"judge": torch.from_numpy(rollouts.judged_N).float()}
        return named_rewards(self.config.rewards, self.lab, rollouts, self.config.length_target)

    def _reward_metrics(self, rollouts: Rollouts) -> Metrics:
        """The mean of each reward where there are several: over the prompts that got rollouts, as ``success`` is.

        With a judge its reward, and the success that the verifier sees.
        """
        groups = group(rollouts.group_N)
        if rollouts.judged_N is not None and rollouts.verified_N is not None:
            verified_N = torch.from_numpy(rollouts.verified_N)
            judged = groups.means(torch.from_numpy(rollouts.judged_N)).mean().item()
            return {"judged_reward": judged, "verified_success": groups.means(verified_N).mean().item()}
        if len(self.config.rewards) == 1:
            return {}
        rewards = self._named_rewards(rollouts)
        return {f"reward_{name}": groups.means(reward_N).mean().item() for name, reward_N in rewards.items()}

    def _selected(
        self, rollouts: Rollouts, selection: Selection, beliefs: Beliefs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Advantages [N] and loss weights [N, T] of a selection."""
        has_own = self.learner.objective.combined is not None or beliefs.baseline_N is not None
        if has_own and selection.advantages_N is None:
            among_N = torch.from_numpy(selection.is_kept | (selection.baseline == "generated"))
            advantages_N = torch.zeros(len(rollouts))
            advantages_N[among_N] = self.advantages(rollouts.take(among_N), beliefs.take(among_N))
            selection = replace(selection, advantages_N=advantages_N.double().numpy())
        return selected_advantages_and_weights(
            self.rewards(rollouts),
            rollouts.group_N,
            rollouts.mask_NT,
            selection,
            estimator=self.learner.objective.advantage,
            aggregation=self.config.aggregation,
            length=self._length,
        )

    def batch(self, step: int) -> list[Problem]:
        """The prompts of a step (from 1): each epoch is a new shuffle of the pool; a last, short batch is left out.

        A generated pool is passed once: its first epoch is the only one.
        """
        pool, size = self.mixture.pool, self.config.asked_prompts
        epoch, place = divmod(step - 1, len(pool) // size)
        order = np.random.default_rng([self.config.seed, epoch]).permutation(len(pool))
        return [pool[i] for i in order[place * size : (place + 1) * size]]

    def evaluate(self) -> Metrics:
        """Mean exact success probability on the pool (some prompts of a generated one) and on the held-out prompts.

        Where prompts have many answers, also how many different ones 16 rollouts of a prompt are expected to find.
        """
        measured = self.mixture.pool if self.mixture.measured is None else self.mixture.measured
        sets = {"pool": measured, "held_out": self.mixture.held_out}
        if not self.lab.regime.has_many_answers:
            return {f"{name}_success": float(self.lab.success_probability(own).mean()) for name, own in sets.items()}
        return {key: value for name, own in sets.items() for key, value in many_answers(self.lab, name, own).items()}

    @property
    def _parts(self) -> dict[str, Stateful]:
        """What is saved beside policy and learner, by its name in a checkpoint."""
        parts = {"actor": self.actor, "judge": self.judge, "planner": self.planner, "selector": self.selector}
        return {name: part for name, part in (parts | {"recent": self.recent}).items() if part is not None}

    def state_dict(self, step: int) -> State:
        """Everything a resumed run needs, after ``step`` steps."""
        states = {name: part.state_dict() for name, part in self._parts.items()}
        return {
            "step": step,
            "rollouts": self.rollouts_total,
            "tokens": self.tokens_total,
            "parameters": parameters_state(self.lab.policy),
            **self.learner.state_dict(),
            **{name: state for name, state in states.items() if state},
        }

    def load_state_dict(self, state: State) -> None:
        """Take over what :meth:`state_dict` gave."""
        load_parameters(self.lab.policy, state["parameters"])
        self.learner.load_state_dict(state)
        for name, part in self._parts.items():
            part.load_state_dict(state.get(name, {}))
        self.rollouts_total, self.tokens_total = state["rollouts"], state["tokens"]


def _check_pool(config: TrainConfig, prompts: int) -> None:
    """Raise ConfigError where the pool has too few prompts: for a step, or for one pass of a generated pool."""
    if config.asked_prompts > prompts:
        raise ConfigError(
            "a step takes more prompts than the pool holds",
            got=f"{config.asked_prompts}, for prompts_per_step {config.prompts_per_step}",
            allowed=f"at most {prompts}",
            fix="lower --prompts-per-step or --candidate-prompts",
        )
    if config.pool == "generated" and config.steps * config.asked_prompts > prompts:
        raise ConfigError(
            "the generated pool is passed once, and the steps ask for more prompts than it holds",
            got=f"{config.steps} steps of {config.asked_prompts} prompts, {config.steps * config.asked_prompts} in all",
            allowed=f"at most {prompts} in all: {prompts // config.asked_prompts} such steps",
            fix="lower --steps, --prompts-per-step or --candidate-prompts",
        )
