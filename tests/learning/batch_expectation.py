"""The expected gradient of advantages on prompts whose policy is a coin, by going through every outcome of a batch."""

import itertools

import torch


def expected_gradient(advantages, chances, counts):
    """[Q] the exact mean of (1/n) sum A s, over p (1 - p): 1 where it is the gradient of p, for its logit.

    ``advantages(rewards_N, group_ids_N) -> [N]``; the score of a rollout with reward r in {0, 1} is r - p.
    """
    p_Q = torch.tensor(chances, dtype=torch.float64)
    sizes_Q = torch.tensor(counts)
    groups_N = torch.repeat_interleave(torch.arange(len(counts)), sizes_Q)
    p_N = p_Q[groups_N]
    total_Q = torch.zeros_like(p_Q)
    for outcome in itertools.product((0.0, 1.0), repeat=len(groups_N)):
        r_N = torch.tensor(outcome, dtype=torch.float64)
        chance = torch.where(r_N == 1, p_N, 1 - p_N).prod()
        total_Q.index_add_(0, groups_N, chance * advantages(r_N, groups_N) * (r_N - p_N) / sizes_Q[groups_N])
    return total_Q / (p_Q * (1 - p_Q))
