"""A toy without a language model: prompts with a few answers each, whose success and its gradient are known exactly.

What a planner, a selector, an estimator and an aggregation optimise together is measured on it: the step is made by the
functions that training calls, from rollouts that came through ask, tell and rounds, and its mean is projected on the
true gradient of every prompt (docs/methods.md). The policy stands still; only the planner and the selector learn.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from allotment.errors import InvalidInputError
from allotment.learning.advantages import (
    AdvantageFunction,
    AdvantageName,
    advantage_estimator,
    baseline_advantages,
    second_look_advantages,
)
from allotment.learning.aggregation import Aggregation
from allotment.learning.selected import selected_advantages_and_weights
from allotment.planning.planner import Planner
from allotment.selection import Scored, Selection, Selector, check_selection
from allotment.types import FloatArray, IntArray, Plan, PromptId

WRONG_SHARES = (0.5, 0.3, 0.2)
"""How the wrong answers of a prompt share its failures."""


@dataclass(frozen=True, eq=False)
class Policy:
    """A softmax over A answers for each of Q prompts, from one logit per answer; answer 0 is right."""

    chances_QA: FloatArray
    """[Q, A] probability of each answer."""

    @classmethod
    def of(cls, success_Q: npt.ArrayLike) -> Policy:
        """The policy with these success probabilities.

        Raises:
            InvalidInputError: one is outside (0, 1).
        """
        p_Q = np.asarray(success_Q, dtype=np.float64)
        if p_Q.ndim != 1 or not np.all((p_Q > 0) & (p_Q < 1)):
            fix = "leave out prompts with p = 0 or 1: their gradient is 0"
            raise InvalidInputError(
                "bad success probabilities of a toy", got=p_Q.tolist(), allowed="[Q], inside (0, 1)", fix=fix
            )
        return cls(np.column_stack([p_Q, np.outer(1 - p_Q, WRONG_SHARES)]))

    def gradients(self) -> FloatArray:
        """[Q, A] gradient of each prompt's success probability with respect to its own logits: ``p (e_0 - pi)``."""
        right_A = np.eye(self.chances_QA.shape[1])[0]
        return np.asarray(self.chances_QA[:, :1] * (right_A - self.chances_QA), dtype=np.float64)

    def entropies(self) -> FloatArray:
        """[Q] entropy, in nats."""
        return np.asarray(-(self.chances_QA * np.log(self.chances_QA)).sum(1), dtype=np.float64)

    def sample(self, rows_N: IntArray, rng: np.random.Generator) -> IntArray:
        """[N] an answer for each of these prompts."""
        below_NA = np.cumsum(self.chances_QA, axis=1)[rows_N, :-1]
        return np.asarray((rng.random(len(rows_N))[:, None] >= below_NA).sum(1), dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Step:
    """What one step of training would do, and what it costs."""

    gradient_QA: FloatArray
    """[Q, A] the estimate: what a unit of learning rate adds to the logits of each prompt."""
    generated_Q: IntArray
    """[Q] rollouts that were generated in this step."""
    trained_Q: IntArray
    """[Q] rollouts with a weight in the loss; with a window above 1 also of earlier steps."""


@dataclass(frozen=True, eq=False)
class _Batch:
    """The N rollouts of one step, in groups of equal ``rows_N``."""

    rows_N: IntArray
    answers_N: IntArray
    numbers_N: IntArray
    advantages_N: FloatArray
    factors_N: FloatArray
    """[N] what the plan's weights multiply in the loss."""
    has_own_advantages: bool
    """Whether ``advantages_N`` are others than those of an estimator by name."""


class Toy:
    """A run of a planner, and of a selector, on a toy.

    Args:
        policy: of Q prompts, with the ids 0..Q-1.
        planner: asked for all of them at every step.
        selector: chooses among the rollouts; the planner's own if None, and all of them if it has none.
        estimator: of the advantages, by name or as a function of rewards and group ids.
        aggregation: of the loss.
        steps: length of the run, for selectors that act by its progress.
        seed: of the answers.
    """

    def __init__(
        self,
        policy: Policy,
        planner: Planner,
        selector: Selector | None = None,
        *,
        estimator: AdvantageName | AdvantageFunction = "rloo",
        aggregation: Aggregation = "prompt_mean",
        steps: int = 100,
        seed: int = 0,
    ) -> None:
        self.policy, self.planner, self.steps = policy, planner, steps
        self.selector: Selector | None = getattr(planner, "selector", None) if selector is None else selector
        self.estimator, self.aggregation = estimator, aggregation
        self._rng = np.random.default_rng(seed)
        self._window: deque[_Batch] = deque(maxlen=1 if self.selector is None else self.selector.window)
        self._entropies_Q = policy.entropies()
        self._step = self._numbered = 0

    def step(self) -> Step:
        """Ask, generate, tell, until the step is complete; then select, and estimate the gradient."""
        self._step += 1
        self._window.append(self._generate())
        chances_QA = self.policy.chances_QA
        rows_N = np.concatenate([b.rows_N for b in self._window])
        answers_N = np.concatenate([b.answers_N for b in self._window])
        factors_N, is_kept_N = self._factors()
        sums_QA = np.zeros_like(chances_QA)
        np.add.at(sums_QA, (rows_N, answers_N), factors_N)
        gradient_QA = sums_QA - sums_QA.sum(1, keepdims=True) * chances_QA
        generated_Q, trained_Q = (
            np.bincount(rows, minlength=len(chances_QA)) for rows in (self._window[-1].rows_N, rows_N[is_kept_N])
        )
        return Step(gradient_QA, generated_Q, trained_Q)

    def _generate(self) -> _Batch:
        ids: list[PromptId] = list(range(len(self.policy.chances_QA)))
        plans: list[Plan] = []
        answers: list[IntArray] = []
        while not (plans and self.planner.done):
            plan = self.planner.ask(ids)
            rows_n = _rows(plan)
            answers_n = self.policy.sample(rows_n, self._rng)
            texts = [str(a) for a in answers_n]
            self.planner.tell(plan, _rewards(answers_n), rows_n, lengths=np.ones(len(rows_n)), answers=texts)
            plans.append(plan)
            answers.append(answers_n)
        rows_N = np.concatenate([_rows(plan) for plan in plans])
        answers_N = np.concatenate(answers)
        numbers_N = self._numbered + np.arange(len(rows_N))
        self._numbered += len(rows_N)
        advantages_N = self._advantages(plans, rows_N, _rewards(answers_N))
        has_own = callable(self.estimator) or plans[0].expected_later is not None or plans[0].baselines is not None
        factors_Q = plans[0].loss_factors(len(np.unique(rows_N)))
        factors_N = np.ones(len(rows_N)) if factors_Q is None else self._spread(plans[0], factors_Q)[rows_N]
        return _Batch(rows_N, answers_N, numbers_N, advantages_N, factors_N, has_own)

    def _advantages(self, plans: Sequence[Plan], rows_N: IntArray, rewards_N: FloatArray) -> FloatArray:
        """[N] by the estimator, against the baselines of the plan, or with the weights of a second look."""
        rewards, ids, first = torch.from_numpy(rewards_N), torch.from_numpy(rows_N), plans[0]
        if not len(rows_N):
            return np.zeros(0)
        if first.baselines is not None:
            shares_Q = np.ones(len(first.counts)) if first.baseline_shares is None else first.baseline_shares
            beliefs = [torch.from_numpy(self._spread(first, v_Q)[rows_N]) for v_Q in (first.baselines, shares_Q)]
            return np.asarray(baseline_advantages(rewards, ids, *beliefs))
        if first.expected_later is None:
            estimate = self.estimator if callable(self.estimator) else advantage_estimator(self.estimator)
            return np.asarray(estimate(rewards, ids))
        rounds_N = torch.cat([torch.full((plan.budget,), plan.round) for plan in plans])
        expected_N = torch.from_numpy(first.expected_later[rows_N])
        return np.asarray(second_look_advantages(rewards, ids, rounds_N, expected_N))

    def _spread(self, plan: Plan, values_P: FloatArray) -> FloatArray:
        """[Q] the values of a plan's prompts; 0 for those that are not in it."""
        values_Q = np.zeros(len(self.policy.chances_QA))
        values_Q[list(plan.prompt_ids)] = values_P
        return values_Q

    def _factors(self) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
        """[N] weight times advantage of every rollout in the window; [N] whether it is trained on."""
        scored = self._scored()
        if self.selector is None or not len(scored):
            selection = Selection(np.ones(len(scored)))
        else:
            selection = check_selection(self.selector.select(scored), scored)
        if self._window[-1].has_own_advantages and selection.advantages_N is None:
            selection = replace(selection, advantages_N=scored.advantages_N)
        if not len(scored):
            return np.zeros(0), selection.is_kept
        advantages_N, weights_N1 = selected_advantages_and_weights(
            torch.from_numpy(scored.rewards_N),
            torch.from_numpy(scored.rows_N),
            torch.ones(len(scored), 1, dtype=torch.bool),
            selection,
            "rloo" if callable(self.estimator) else self.estimator,
            self.aggregation,
            length="sum",
            dtype=torch.float64,
        )
        factors_N = np.concatenate([b.factors_N for b in self._window])
        return np.asarray(advantages_N * weights_N1[:, 0]) * factors_N, selection.is_kept

    def _scored(self) -> Scored:
        """The rollouts of the window, in a group for each prompt and step."""
        window, asked = self._window, len(self.policy.chances_QA)
        visits_V = np.arange(len(window))
        answers_N = np.concatenate([b.answers_N for b in window])
        n = len(answers_N)
        return Scored(
            step=self._step,
            progress=min(self._step / self.steps, 1.0),
            prompt_ids=tuple(range(asked)) * len(window),
            rows_N=np.concatenate([b.rows_N + asked * v for v, b in enumerate(window)]),
            rewards_N=_rewards(answers_N),
            advantages_N=np.concatenate([b.advantages_N for b in window]),
            lengths_N=np.ones(n, dtype=np.int64),
            truncated_N=np.zeros(n, dtype=np.bool_),
            entropies_N=np.concatenate([self._entropies_Q[b.rows_N] for b in window]),
            ages_Q=np.repeat(visits_V[::-1], asked),
            numbers_N=np.concatenate([b.numbers_N for b in window]),
            clip_fractions_N=np.zeros(n),
            answers_N=tuple(str(a) for a in answers_N),
        )


def _rows(plan: Plan) -> IntArray:
    """[N] the prompt of every rollout of a plan, in its order."""
    return np.repeat(np.array(plan.prompt_ids, dtype=np.int64), plan.counts)


def _rewards(answers_N: IntArray) -> FloatArray:
    """[N] 1 for the right answer, 0 for another."""
    return np.asarray(answers_N == 0, dtype=np.float64)


@dataclass(frozen=True, eq=False)
class MeasuredWeights:
    """What a method really optimises, and what it costs, by success probability; means over prompts and steps."""

    probabilities_P: FloatArray
    """[P] the grid of success probabilities."""
    weights_P: FloatArray
    """[P] mean estimated gradient, projected on the true one, divided by its size; 1 for uniform RLOO."""
    errors_P: FloatArray
    """[P] standard error of ``weights_P``."""
    generated_P: FloatArray
    """[P] rollouts generated for a prompt in a step."""
    trained_P: FloatArray
    """[P] rollouts of a prompt trained on in a step."""


def measured_weights(
    make_planner: Callable[[int], Planner],
    p_grid: npt.ArrayLike,
    steps: int = 50,
    *,
    make_selector: Callable[[int], Selector] | None = None,
    warm_up: int = 10,
    runs: int = 32,
    copies: int = 4,
    estimator: AdvantageName = "rloo",
    aggregation: Aggregation = "prompt_mean",
) -> MeasuredWeights:
    """The effective weight of a prompt, relative to the gradient of its success probability, on a grid of p.

    Args:
        make_planner: from a seed; asked for ``copies`` prompts of every p at every step.
        p_grid: [P] success probabilities, inside (0, 1).
        steps: that are measured, in each run.
        make_selector: from a seed; the planner's own if None.
        warm_up: steps before those, so that there is a history.
        runs: independent repetitions; the standard error is that of their mean, so at least 2, better 30.
        copies: prompts of each p.
        estimator: of the advantages, by name or as a function of rewards and group ids.
        aggregation: of the loss.

    Raises:
        InvalidInputError: a probability is outside (0, 1), or there are fewer than 2 runs.
    """
    p_P = np.asarray(p_grid, dtype=np.float64)
    policy = Policy.of(np.repeat(p_P, copies))
    if runs < 2:
        raise InvalidInputError("too few runs for a standard error", got=runs, allowed="at least 2", fix="pass runs=32")
    truth_QA = policy.gradients()
    unit_QA = truth_QA / (truth_QA**2).sum(1, keepdims=True) * len(truth_QA)
    found_R3Q = np.zeros((runs, 3, len(truth_QA)))
    for run in range(runs):
        selector = None if make_selector is None else make_selector(run)
        toy = Toy(
            policy,
            make_planner(run),
            selector,
            estimator=estimator,
            aggregation=aggregation,
            steps=warm_up + steps,
            seed=run,
        )
        for _ in range(warm_up):
            toy.step()
        for _ in range(steps):
            step = toy.step()
            weight_Q = (step.gradient_QA * unit_QA).sum(1)
            found_R3Q[run] += np.stack([weight_Q, step.generated_Q, step.trained_Q])
    mean_R3P = found_R3Q.reshape(runs, 3, len(p_P), copies).mean(3) / steps
    weights_P, generated_P, trained_P = mean_R3P.mean(0)
    errors_P = mean_R3P[:, 0].std(0, ddof=1) / np.sqrt(runs)
    return MeasuredWeights(p_P, weights_P, errors_P, generated_P, trained_P)
