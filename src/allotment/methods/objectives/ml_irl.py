"""Maximum-likelihood inverse reinforcement learning: a reward is learnt under which demonstrations are likely.

Source: single-loop maximum-likelihood IRL (Zeng, Li, Garcia, Hong, arXiv 2210.01808). One soft policy step and one
reward step take turns, so that no reinforcement learning runs to its end inside. Quoted from paper and released code:
the reward's gradient, expert less agent; one reward step an iteration; the network (two hidden layers of 64, output
clamped to +-10); Adam with L2 decay 1e-3.

A reconstruction is all that makes it work on completions. There a prompt is a state, a completion y an action, and

    pi(y|x)  proportional to  pi_ref(y|x) exp(r(x, y) / beta)

is the soft-optimal policy: the reference takes the place of the uniform distribution that plain entropy is measured
against. The likelihood of demonstrations under it has the gradient ``(grad r(demonstration) - E_pi[grad r]) / beta``.
Its policy step is any policy gradient on ``r - beta (log pi - log pi_ref)``. ``theory.tabular_irl`` is the same
on a finite decision process, exactly.

Deviations: ReLU stands after both hidden layers; the released code has none after the first, which makes its first two
layers one linear map. The reward begins at 0, where the reference is soft-optimal, and its output has no bias: the
likelihood has no gradient by it. The loss is a mean over prompts of differences of means, not a difference of means
over a batch. :func:`squared_rewards` can be added to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from allotment.errors import ConfigError, InvalidInputError
from allotment.learning.groups import Groups, check_finite, group

_FIX = "check the policy the features come from, and lower the reward's learning rate"


class RewardNetwork(nn.Module):
    """A reward from features: an MLP with ReLU, its output clamped; 0 for all features at first.

    Args:
        width: F, number of features.
        hidden: widths of the hidden layers.
        bound: the reward is between -bound and bound; beyond, it has no gradient.
        seed: of the first parameters.

    Raises:
        ConfigError: a width is not positive, or the bound is not.
    """

    def __init__(self, width: int, hidden: Sequence[int] = (64, 64), bound: float = 10.0, seed: int = 0) -> None:
        super().__init__()
        if not 0 < bound < float("inf") or min((width, *hidden)) < 1:
            raise ConfigError(
                "a reward network cannot have this shape",
                got=f"width {width}, hidden {tuple(hidden)}, bound {bound}",
                allowed="widths of at least 1, a finite bound > 0",
                fix="correct the setting",
            )
        self.bound = bound
        widths = (width, *hidden)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            layers: list[nn.Module] = []
            for before, after in pairwise(widths):
                layers += [nn.Linear(before, after), nn.ReLU()]
            self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], 1, bias=False))
        nn.init.zeros_(self.layers[-1].weight)  # type: ignore[arg-type]

    def forward(self, features_NF: Tensor) -> Tensor:
        """[N] rewards of [N, F] features.

        Raises:
            InvalidInputError: a feature is not finite.
        """
        check_finite("the features of row {}", features_NF, fix=_FIX)
        rewards_N: Tensor = self.layers(features_NF).squeeze(-1).clamp(-self.bound, self.bound)
        return rewards_N


def reward_loss(agent_N: Tensor, agent_ids_N: Tensor, expert_M: Tensor, expert_ids_M: Tensor) -> Tensor:
    """Mean over prompts of mean r(agent) less mean r(expert): beta times minus the gradient of the likelihood.

    ``agent_N``, ``expert_M``: rewards of the policy's rollouts and of demonstrations, with gradient. ``agent_ids_N``,
    ``expert_ids_M``: integers, prompts of each. Rewards of a prompt are averaged first, so that its weight does not
    depend on how many rollouts or demonstrations it has. Returns [].

    Raises:
        InvalidInputError: a prompt has rollouts and no demonstration or the other way round, or a reward is not finite.
    """
    for name, rewards_N in (("rollouts", agent_N), ("demonstrations", expert_M)):
        check_finite(f"the reward of {name}", rewards_N, fix=_FIX)
    agent, expert = _both_sides(agent_ids_N, expert_ids_M)
    return (agent.means(agent_N) - expert.means(expert_M)).mean()


def squared_rewards(agent_N: Tensor, agent_ids_N: Tensor, expert_M: Tensor, expert_ids_M: Tensor) -> Tensor:
    """Mean over prompts of mean r(agent)^2 plus mean r(expert)^2; arguments as of :func:`reward_loss`. Returns [].

    Ours. ``reward_loss + penalty / 2 * squared_rewards`` is least at ``r = (e - a) / (penalty (e + a))``, where e and a
    are the probabilities of a completion under expert and agent: between +-1 / penalty, and without the freedom to add
    a number to all rewards of a prompt. Left alone, that number drifts to the bound of the network, where nothing is
    learnt any more.
    """
    agent, expert = _both_sides(agent_ids_N, expert_ids_M)
    return (agent.means(agent_N.square()) + expert.means(expert_M.square())).mean()


def soft_rewards(rewards_N: Tensor, log_ratios_N: Tensor, beta: float) -> Tensor:
    """``r - beta (log pi - log pi_ref)``: whose expected value the soft-optimal policy makes largest; all [N].

    ``log_ratios_N``: of whole completions, in nats, no gradient: the derivative of their own mean is 0.
    """
    return rewards_N - beta * log_ratios_N.to(rewards_N.dtype)


def _both_sides(agent_ids_N: Tensor, expert_ids_M: Tensor) -> tuple[Groups, Groups]:
    agent, expert = group(agent_ids_N), group(expert_ids_M)
    one_sided = set(agent.ids_Q.tolist()) ^ set(expert.ids_Q.tolist())
    if one_sided:
        raise InvalidInputError(
            "a prompt has one side of the comparison alone",
            got=f"prompts {sorted(one_sided)}: rollouts without a demonstration, or the other way round",
            allowed="at least one rollout and one demonstration of each prompt",
            fix="leave these prompts out of the reward step",
        )
    return agent, expert
