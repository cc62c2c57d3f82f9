"""What a combination of advantage and aggregation really optimises: the exact effective weight of each prompt.

The policy of prompt q has one parameter, the logit of its success probability p, whose true gradient is
``p (1 - p)``. The expected gradient of an on-policy step is computed exactly, over every number of successes, with the
functions that training calls. The effective weight is the quotient: ``1 / Q`` for every prompt means that the step
follows the gradient of the mean success probability; anything unequal is another objective.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import comb

from allotment.errors import InvalidInputError
from allotment.learning.advantages import AdvantageName, advantage_estimator
from allotment.learning.aggregation import Aggregation, Length, rollout_weights
from allotment.types import FloatArray, IntArray


def effective_weights(
    probabilities_Q: npt.ArrayLike,
    counts_Q: npt.ArrayLike,
    advantage: AdvantageName = "rloo",
    aggregation: Aggregation = "prompt_mean",
    *,
    length: Length = "mean",
    right_length: npt.ArrayLike = 1,
    wrong_length: npt.ArrayLike = 1,
) -> FloatArray:
    """[Q] expected gradient of the logit of each prompt, divided by its true gradient ``p (1 - p)``.

    ``probabilities_Q``: [Q] success probabilities, inside (0, 1). ``counts_Q``: [Q] rollouts of each prompt, >= 1.
    ``right_length``, ``wrong_length``: tokens of a right and of a wrong answer, [] or [Q], >= 1. Rewards are 0 and 1.
    Cost grows with the square of the counts and, for ``token_mean``, of Q: meant for tens of prompts.

    Raises :class:`~allotment.errors.InvalidInputError` for values outside these domains,
    :class:`~allotment.errors.ConfigError` for unknown names.
    """
    p_Q = np.asarray(probabilities_Q, dtype=np.float64)
    n_Q = np.asarray(counts_Q, dtype=np.int64)
    lengths_2Q = np.array([np.broadcast_to(x, p_Q.shape) for x in (right_length, wrong_length)], dtype=np.int64)
    _check(p_Q, n_Q, lengths_2Q)
    estimate = advantage_estimator(advantage)
    total = {"prompt_mean": len(p_Q), "sequence_mean": int(n_Q.sum())}.get(aggregation, 1)
    right = [np.arange(n + 1) for n in n_Q]
    chances = [comb(n, k) * p**k * (1 - p) ** (n - k) for p, n, k in zip(p_Q, n_Q, right, strict=True)]
    tokens = [k * pair[0] + (n - k) * pair[1] for n, k, pair in zip(n_Q, right, lengths_2Q.T, strict=True)]
    weights_Q = np.empty(len(p_Q))
    for q, (p, n) in enumerate(zip(p_Q, n_Q, strict=True)):
        rewards_N, ids_N, mask_NT = _every_outcome(n, *lengths_2Q[:, q])
        weights_NT = rollout_weights(ids_N, mask_NT, aggregation, length=length, total=total, dtype=torch.float64)
        step_N = estimate(rewards_N, ids_N) * weights_NT[:, 0] * (rewards_N - p)  # the choice is made by one token
        step_K = step_N.view(n + 1, n).sum(1).numpy()
        if aggregation == "token_mean":
            step_K = step_K * _expected_inverse(tokens, chances, q)
        weights_Q[q] = (chances[q] * step_K).sum() / (p * (1 - p))
    return weights_Q


def _check(p_Q: FloatArray, n_Q: IntArray, lengths_2Q: IntArray) -> None:
    fits = p_Q.ndim == 1 and p_Q.shape == n_Q.shape and p_Q.size > 0
    if not (fits and np.all((p_Q > 0) & (p_Q < 1)) and np.all(n_Q >= 1) and np.all(lengths_2Q >= 1)):
        raise InvalidInputError(
            "Effective weights cannot be computed.",
            got=f"probabilities {p_Q}, counts {n_Q}, lengths {lengths_2Q.tolist()}",
            allowed="equally many probabilities inside (0, 1) and counts >= 1, lengths >= 1",
            fix="leave out prompts with p = 0 or 1: their gradient is 0",
        )


def _every_outcome(n: int, right: int, wrong: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rewards, group ids [(n + 1) n] and mask: group k, for k = 0..n, has n rollouts of which k succeed."""
    ids_N = torch.arange(n + 1).repeat_interleave(n)
    rewards_N = (torch.arange(n).repeat(n + 1) < ids_N).double()
    lengths_N = torch.where(rewards_N == 1, right, wrong)
    return rewards_N, ids_N, torch.arange(max(right, wrong)) < lengths_N[:, None]


def _expected_inverse(tokens: list[IntArray], chances: list[FloatArray], q: int) -> FloatArray:
    """[n_q + 1] ``E[1 / tokens of the batch]`` given the successes of prompt q; the other prompts convolved exactly."""
    others = np.ones(1)
    for i, (tokens_K, chances_K) in enumerate(zip(tokens, chances, strict=True)):
        if i != q:
            others = np.convolve(others, np.bincount(tokens_K, weights=chances_K))
    inverse = 1.0 / (tokens[q][:, None] + np.arange(len(others)))
    return np.asarray(inverse @ others, dtype=np.float64)
