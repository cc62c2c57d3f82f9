"""A judge that learns the reward from demonstrations while the policy learns from the reward."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import get_args

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from allotment.errors import ConfigError
from allotment.lab.checkpoint import load_optimizer, load_parameters, optimizer_state, parameters_state
from allotment.lab.demonstrations import Demonstration, as_rollouts, written_demonstrations
from allotment.lab.generation import Lab, Pooling, Rollouts
from allotment.lab.judges import Judged
from allotment.lab.step_rows import Metrics
from allotment.learning.groups import group
from allotment.learning.objective import ObjectiveEntry, ObjectiveRow
from allotment.methods.objectives.ml_irl import RewardNetwork, reward_loss, soft_rewards, squared_rewards
from allotment.state import State, check_state
from allotment.tasks.mixture import Mixture, Problem

_MEMORY = 0.9
_SLACK = 1e-3


class MaximumLikelihoodIRL:
    """Maximum-likelihood inverse reinforcement learning (arXiv 2210.01808) in the verifier's place.

    What is right is known from demonstrations alone, right completions of prompts of the pool. Steps of the policy on
    the reward and steps of the reward (:mod:`allotment.methods.objectives.ml_irl`) take turns. The reward step is on
    the rollouts of the policy before its step, one step later than in the paper, so that no further ones are drawn; it
    is that of the likelihood where rollouts are of the trained policy (``--actor current``).

    The reward is a network on the output of each of the policy's blocks at prompt and completion, normalised, as the
    policy was at the start: its current states it could change to be rewarded for no other writing. The same policy
    is the reference.

    Success is ours, for the method has none: r within half of the running mean gap, between demonstrations and
    rollouts, of the mean reward of the prompt's own demonstrations; of all demonstrations where it has none. While the
    reward is 0, at the first step, everything is a success.
    """

    KIND = "MaximumLikelihoodIRL"

    def __init__(
        self,
        lab: Lab,
        mixture: Mixture,
        *,
        seed: int = 0,
        demonstrations: Sequence[Demonstration] | None = None,
        share: float = 1.0,
        beta: float = 0.1,
        learning_rate: float = 3e-3,
        penalty: float = 0.1,
        pooling: Pooling = "mean",
    ) -> None:
        """Check the demonstrations; ConfigError on a setting, InvalidInputError on a demonstration that is not allowed.

        Args:
            lab: the policy to be trained, as it is at the start.
            mixture: whose ``pool`` is demonstrated.
            seed: of the prompts that are demonstrated, the free characters of completions, the network.
            demonstrations: pairs of a prompt's id and a completion; by default written from the answers.
            share: of the prompts to write demonstrations of. The others are rewarded, but no reward is learnt on them.
            beta: what a nat of distance to the policy of the start costs, in reward.
            learning_rate: of the reward's Adam; 0 freezes it.
            penalty: on squared rewards, ours; 0 is the paper's.
            pooling: hidden states at the ``last`` token, or their ``mean`` over prompt and completion.
        """
        if pooling not in get_args(Pooling):
            raise _refused("pooling", repr(pooling), ", ".join(get_args(Pooling)))
        if not 0 < share <= 1 or (demonstrations is not None and share != 1):
            got = f"share {share}{'' if demonstrations is None else ' of demonstrations that are given'}"
            raise _refused("share", got, "above 0, at most 1; and 1 where demonstrations are given")
        if not all(0 <= number < float("inf") for number in (beta, learning_rate, penalty)):
            got = f"beta {beta}, learning_rate {learning_rate}, penalty {penalty}"
            raise _refused("beta, learning_rate or penalty", got, "finite numbers of at least 0")
        self.lab, self.beta, self.pooling, self.penalty = lab, beta, pooling, penalty
        self._start = deepcopy(lab)
        if demonstrations is None:
            demonstrations = written_demonstrations(lab, mixture.pool, share, seed)
        expert = as_rollouts(lab, mixture.pool, demonstrations)
        self._expert_ids_M = expert.group_N
        self._expert_MF = self.features(mixture.pool, expert)
        self._row_of = {mixture.pool[row].id: row for row in expert.group_N.tolist()}
        self.reward = RewardNetwork(self._expert_MF.shape[1], seed=seed)
        self._optimizer = torch.optim.Adam(self.reward.parameters(), lr=learning_rate, weight_decay=1e-3)
        self._gap = 0.0

    @torch.no_grad()
    def features(self, problems: Sequence[Problem], rollouts: Rollouts) -> Tensor:
        """[N, layers * H] what the reward is computed from: outputs of the starting policy's blocks, normalised."""
        states_NLH = self._start.representations(problems, rollouts, self.pooling)
        return layer_norm(states_NLH, states_NLH.shape[-1:]).flatten(1)

    @torch.no_grad()
    def rewards(self, problems: Sequence[Problem], rollouts: Rollouts) -> Tensor:
        """[N] r of prompt and completion, from -10 to 10."""
        rewards_N: Tensor = self.reward(self.features(problems, rollouts))
        return rewards_N

    @torch.no_grad()
    def judge(self, problems: Sequence[Problem], rollouts: Rollouts) -> Judged:
        """``r - beta (log pi - log pi_ref)``, and whether r is near to that of demonstrations; InvalidInputError if a
        hidden state is not finite.
        """
        rewards_N = self.rewards(problems, rollouts)
        given = (problems, rollouts.group_N, rollouts.tokens_NT, rollouts.mask_NT)
        log_ratios_N = (self.lab.log_probs(*given) - self._start.log_probs(*given)).sum(1)
        successes_N = rewards_N > self._thresholds(problems)[rollouts.group_N]
        judged_N = soft_rewards(rewards_N.double(), log_ratios_N, self.beta)
        return Judged(judged_N.numpy(), successes_N.double().numpy())

    def _thresholds(self, problems: Sequence[Problem]) -> Tensor:
        """[Q] above it a rollout counts as a success."""
        expert_M = self.reward(self._expert_MF)
        experts = group(self._expert_ids_M)
        own = dict(zip(experts.ids_Q.tolist(), experts.means(expert_M).tolist(), strict=True))
        anchors = [own.get(self._row_of.get(problem.id, -1), expert_M.mean().item()) for problem in problems]
        return torch.tensor(anchors) - max(self._gap / 2, _SLACK)

    def learn(self, problems: Sequence[Problem], rollouts: Rollouts) -> Metrics:
        """One step of the reward on the prompts that have rollouts and demonstrations.

        Metrics: ``demonstrated``, the share of prompts with rollouts that have them; over these, before the step,
        ``reward_gap``, the mean of r(demonstration) less r(rollout), 0 without any; ``reward_clamped``, the share of
        those rollouts and demonstrations whose reward stands at its bound and has no gradient.
        """
        rows_Q = torch.tensor([self._row_of.get(problem.id, -1) for problem in problems])
        ids_N = rows_Q[rollouts.group_N]
        shown_N = ids_N >= 0
        demonstrated = group(ids_N[shown_N]).ids_Q if shown_N.any() else torch.tensor([], dtype=torch.int64)
        metrics = {"demonstrated": len(demonstrated) / len(group(rollouts.group_N))}
        if not len(demonstrated):
            return {**metrics, "reward_gap": 0.0, "reward_clamped": 0.0}
        shown_M = torch.isin(self._expert_ids_M, demonstrated)
        agent_N = self.reward(self.features(problems, rollouts.take(shown_N)))
        expert_M = self.reward(self._expert_MF[shown_M])
        both = (agent_N, ids_N[shown_N], expert_M, self._expert_ids_M[shown_M])
        loss = reward_loss(*both)
        self._optimizer.zero_grad()
        (loss + self.penalty / 2 * squared_rewards(*both)).backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._gap = _MEMORY * self._gap - (1 - _MEMORY) * loss.item()
        clamped = (torch.cat([agent_N, expert_M]).abs() >= self.reward.bound).double().mean().item()
        return {**metrics, "reward_gap": -loss.item(), "reward_clamped": clamped}

    def state_dict(self) -> State:
        """The reward, its moments, the running gap; demonstrations and reference are made again."""
        return {
            "kind": self.KIND,
            "reward": parameters_state(self.reward),
            "optimizer": optimizer_state(self._optimizer),
            "gap": self._gap,
        }

    def load_state_dict(self, state: State) -> None:
        """Take over what :meth:`state_dict` gave."""
        check_state(state, self.KIND, ("reward", "optimizer", "gap"))
        load_parameters(self.reward, state["reward"])
        load_optimizer(self._optimizer, state["optimizer"])
        self._gap = float(state["gap"])


def _refused(setting: str, got: str, allowed: str) -> ConfigError:
    wrong = f"maximum-likelihood inverse reinforcement learning cannot have this {setting}"
    return ConfigError(wrong, got=got, allowed=allowed, fix="correct the setting")


ENTRY = ObjectiveEntry(
    "reward",
    MaximumLikelihoodIRL,
    row=ObjectiveRow(
        "reward: learnt from demonstrations, one step after each step of the policy",
        "demonstrations like the policy's own rollouts: no step of the reward",
        "arXiv 2210.01808 and its code",
        "the sequence version is a reconstruction (`pi` proportional to `pi_ref exp(r / beta)`) with a penalty on "
        "squared rewards, states of the starting policy and a rule of success of ours; the tabular one is exact",
    ),
)
