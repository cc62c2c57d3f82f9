"""Maximum-likelihood inverse reinforcement learning where everything can be computed: a finite decision process.

What is learnt is the reward r; the policy that maximises ``E[sum_t gamma^t (r + temperature * entropy)]``, the
soft-optimal one, is to give an expert's trajectories the largest likelihood. Float64; policies are natural logarithms
``[S, A]``, so that a large reward does not round a probability to 0 before its logarithm is taken.

Source: single-loop maximum-likelihood IRL (Zeng, Li, Garcia, Hong, arXiv 2210.01808), its Algorithm 1. With a
temperature other than 1 the gradient is divided by it: that follows from the definition of the likelihood.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import entr, log_softmax

from allotment.errors import InvalidInputError
from allotment.types import FloatArray

_IGNORED = 1e-12
_TOLERANCE = 1e-9


@dataclass(frozen=True, eq=False)
class FiniteMDP:
    """S states, A actions, known transitions; the reward is no part of it.

    Raises:
        InvalidInputError: probabilities that are negative or do not sum to 1, shapes that do not fit, a discount
            outside [0, 1), a temperature that is not positive.
    """

    transitions_SAS: FloatArray
    """[S, A, S] probability of the next state."""
    start_S: FloatArray
    """[S] probability of the first state."""
    gamma: float = 0.9
    """Discount."""
    temperature: float = 0.5
    """What a nat of entropy is worth, in reward."""

    def __post_init__(self) -> None:
        shape = np.shape(self.transitions_SAS)
        if len(shape) != 3 or shape[0] != shape[2] or 0 in shape or np.shape(self.start_S) != shape[:1]:
            raise _refused("shapes", f"{shape} and {np.shape(self.start_S)}", "[S, A, S] and [S], none empty")
        for name in ("transitions_SAS", "start_S"):
            values = np.asarray(getattr(self, name), dtype=np.float64)
            if not (values >= 0).all() or not np.allclose(values.sum(-1), 1, rtol=0, atol=_TOLERANCE):
                raise _refused(name, f"sums {values.sum(-1)}", "numbers >= 0 that sum to 1 over the last axis")
            object.__setattr__(self, name, values)
        if not 0 <= self.gamma < 1:
            raise _refused("gamma", self.gamma, "from 0 to below 1")
        if not 0 < self.temperature < np.inf:
            raise _refused("temperature", self.temperature, "a finite number > 0")


def soft_q(mdp: FiniteMDP, rewards_SA: FloatArray, log_policy_SA: FloatArray) -> FloatArray:
    """[S, A] value of an action and of following the policy after it, entropy of later actions included.

    Raises:
        InvalidInputError: the rewards are not finite, or the policy is none.
    """
    rewards_SA, policy_SA = _checked_rewards(mdp, rewards_SA), _checked_policy(mdp, log_policy_SA)
    gains_S = (policy_SA * rewards_SA + mdp.temperature * entr(policy_SA)).sum(1)
    values_S = np.linalg.solve(np.eye(len(gains_S)) - mdp.gamma * _state_transitions(mdp, policy_SA), gains_S)
    q_SA: FloatArray = rewards_SA + mdp.gamma * mdp.transitions_SAS @ values_S
    return q_SA


def improved_policy(mdp: FiniteMDP, q_SA: FloatArray) -> FloatArray:
    """[S, A] logarithm of the policy proportional to ``exp(Q / temperature)``.

    With :func:`soft_q` a soft policy iteration: it never lowers Q and brings it nearer to the optimum by gamma.
    """
    log_policy_SA: FloatArray = log_softmax(np.asarray(q_SA) / mdp.temperature, axis=1)
    return log_policy_SA


def uniform_policy(mdp: FiniteMDP) -> FloatArray:
    """[S, A] logarithm of the policy that prefers nothing."""
    states, actions, _ = mdp.transitions_SAS.shape
    return np.full((states, actions), -np.log(actions))


def soft_optimal_policy(mdp: FiniteMDP, rewards_SA: FloatArray, iterations: int = 1000) -> FloatArray:
    """[S, A] logarithm of the soft-optimal policy: soft policy iterations until Q rises no more.

    Each iteration brings Q at least by the factor gamma nearer, and near the optimum squares the distance.
    """
    log_policy_SA = uniform_policy(mdp)
    q_SA = soft_q(mdp, rewards_SA, log_policy_SA)
    for _ in range(iterations):
        log_policy_SA = improved_policy(mdp, q_SA)
        before_SA, q_SA = q_SA, soft_q(mdp, rewards_SA, log_policy_SA)
        if np.abs(q_SA - before_SA).max() <= 4 * np.finfo(np.float64).eps * np.abs(q_SA).max():
            break
    return improved_policy(mdp, q_SA)


def occupancies(mdp: FiniteMDP, log_policy_SA: FloatArray) -> FloatArray:
    """[S, A] expected ``sum_t gamma^t`` over the visits of each state and action; all together 1 / (1 - gamma)."""
    policy_SA = _checked_policy(mdp, log_policy_SA)
    flows_SS = np.eye(len(policy_SA)) - mdp.gamma * _state_transitions(mdp, policy_SA).T
    occupancies_SA: FloatArray = np.linalg.solve(flows_SS, mdp.start_S)[:, None] * policy_SA
    return occupancies_SA


def log_likelihood(expert_SA: FloatArray, log_policy_SA: FloatArray) -> float:
    """``E_expert[sum_t gamma^t log pi(a_t | s_t)]`` from the expert's occupancies; nats, discounted.

    Largest where the policy is the expert's; it is then minus the expert's discounted entropy.
    """
    return float(np.where(expert_SA > 0, expert_SA * log_policy_SA, 0.0).sum())


def likelihood_gradient(mdp: FiniteMDP, expert_SA: FloatArray, agent_SA: FloatArray) -> FloatArray:
    """[S, A] derivative of the log-likelihood by each reward, from occupancies (or visits) of expert and agent.

    Exact where the agent is soft-optimal for the rewards and both start alike; the constraint of the soft-optimal
    policy is in it already, so that nothing is differentiated through the policy.
    """
    return (np.asarray(expert_SA) - np.asarray(agent_SA)) / mdp.temperature


def sampled_visits(
    mdp: FiniteMDP, log_policy_SA: FloatArray, trajectories: int, random: np.random.Generator
) -> FloatArray:
    """[trajectories, S, A] ``sum_t gamma^t`` over the visits of each state and action in each drawn trajectory.

    Their expectation is :func:`occupancies`; a trajectory is cut where all that is left of it weighs below 1e-12.
    """
    policy_SA = _checked_policy(mdp, log_policy_SA)
    states, actions = policy_SA.shape
    visits_NSA = np.zeros((trajectories, states, actions))
    rows_N = np.arange(trajectories)
    state_N = _drawn(np.broadcast_to(mdp.start_S, (trajectories, states)), random)
    weight = 1.0
    while weight > _IGNORED * (1 - mdp.gamma):
        action_N = _drawn(policy_SA[state_N], random)
        visits_NSA[rows_N, state_N, action_N] += weight
        state_N = _drawn(mdp.transitions_SAS[state_N, action_N], random)
        weight *= mdp.gamma
    return visits_NSA


@dataclass(frozen=True, eq=False)
class Course:
    """What a single loop went through: K steps."""

    rewards_SA: FloatArray
    """The last rewards; only their policy is determined, for potentials can be added."""
    log_policy_SA: FloatArray
    """The last policy."""
    log_likelihoods_K: FloatArray
    """Of the expert under the policy of each step, before the reward step."""
    policy_errors_K: FloatArray
    """Largest difference of a probability to the expert's, each step."""


def single_loop(
    mdp: FiniteMDP,
    expert_log_policy_SA: FloatArray,
    *,
    steps: int,
    step_size: float = 0.1,
    decay: float = 0.0,
    trajectories: int | None = None,
    seed: int = 0,
) -> Course:
    """One soft policy iteration, then one reward step, ``steps`` times; from rewards 0 and the uniform policy.

    Args:
        mdp: where expert and agent act.
        expert_log_policy_SA: [S, A]; -inf where the expert never acts so.
        steps: K.
        step_size: of the reward.
        decay: the step of the reward is ``step_size * K ** -decay``; the paper's analysis has it between 0 and 1.
        trajectories: drawn from expert and agent for a reward step; None takes exact occupancies. The paper draws 1.
        seed: of the trajectories.
    """
    random = np.random.default_rng(seed)
    expert_SA = occupancies(mdp, expert_log_policy_SA)
    rewards_SA, log_policy_SA = np.zeros_like(expert_SA), uniform_policy(mdp)
    log_likelihoods, errors = [], []
    for _ in range(steps):
        log_policy_SA = improved_policy(mdp, soft_q(mdp, rewards_SA, log_policy_SA))
        log_likelihoods.append(log_likelihood(expert_SA, log_policy_SA))
        errors.append(np.abs(np.exp(log_policy_SA) - np.exp(expert_log_policy_SA)).max())
        seen = (expert_SA, occupancies(mdp, log_policy_SA))
        if trajectories is not None:
            policies = (expert_log_policy_SA, log_policy_SA)
            seen = tuple(sampled_visits(mdp, policy, trajectories, random).mean(0) for policy in policies)
        rewards_SA = rewards_SA + step_size * steps**-decay * likelihood_gradient(mdp, *seen)
    return Course(rewards_SA, log_policy_SA, np.array(log_likelihoods), np.array(errors))


def _state_transitions(mdp: FiniteMDP, policy_SA: FloatArray) -> FloatArray:
    """[S, S] probability of the next state under a policy."""
    transitions_SS: FloatArray = np.einsum("sa,sat->st", policy_SA, mdp.transitions_SAS)
    return transitions_SS


def _drawn(probabilities_NK: FloatArray, random: np.random.Generator) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """[N] one of K, each row by its probabilities."""
    cumulative_NK = probabilities_NK.cumsum(1)
    thresholds_N1 = random.random((len(cumulative_NK), 1)) * cumulative_NK[:, -1:]
    drawn_N: np.ndarray[tuple[int], np.dtype[np.int64]] = (cumulative_NK <= thresholds_N1).sum(1)
    return drawn_N


def _checked_rewards(mdp: FiniteMDP, rewards_SA: FloatArray) -> FloatArray:
    rewards_SA, shape = np.asarray(rewards_SA, dtype=np.float64), mdp.transitions_SAS.shape[:2]
    if rewards_SA.shape != shape or not np.isfinite(rewards_SA).all():
        raise _refused("rewards", f"shape {rewards_SA.shape}: {rewards_SA}", f"finite numbers, shape {shape}")
    return rewards_SA


def _checked_policy(mdp: FiniteMDP, log_policy_SA: FloatArray) -> FloatArray:
    """[S, A] probabilities."""
    policy_SA, shape = np.exp(np.asarray(log_policy_SA, dtype=np.float64)), mdp.transitions_SAS.shape[:2]
    if policy_SA.shape != shape or not np.allclose(policy_SA.sum(1), 1, rtol=0, atol=_TOLERANCE):
        allowed = f"logarithms of probabilities that sum to 1 in each state, shape {shape}"
        raise _refused("policy", f"shape {policy_SA.shape}, sums {policy_SA.sum(-1)}", allowed)
    return policy_SA


def _refused(what: str, got: object, allowed: str) -> InvalidInputError:
    wrong = f"a finite decision process cannot have this {what}"
    return InvalidInputError(wrong, got=got, allowed=allowed, fix="correct it; normalise probabilities")
