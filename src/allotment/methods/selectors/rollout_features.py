"""What the contextual bandit knows of a rollout before it decides (arXiv 2602.08499): ten numbers, none of them later.

The paper's vector has ten entries, of which seven are known by name; the last three are a reconstruction.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from allotment.errors import InvalidInputError
from allotment.selection.base import Scored
from allotment.types import FloatArray, IntArray

Feature = Literal[
    "reward",
    "entropy",
    "clip_fraction",
    "log_length",
    "truncated",
    "age",
    "uses",
    "advantage",
    "group_reward",
    "progress",
]
FEATURES: tuple[Feature, ...] = get_args(Feature)
"""[F] The paper names reward, entropy, clip ratio, length, truncation, age and usage count; the advantage, the mean
reward of the group and the progress of training are a reconstruction, and so is taking log(1 + tokens) as length."""


def rollout_features(scored: Scored, uses_N: IntArray) -> FloatArray:
    """[N, F] of each rollout, in the order of :data:`FEATURES`; ``uses_N`` counts how often it was trained on.

    Raises:
        InvalidInputError: a number is not finite.
    """
    sizes_Q = np.bincount(scored.rows_N, minlength=len(scored.prompt_ids))
    sums_Q = np.bincount(scored.rows_N, scored.rewards_N, minlength=len(scored.prompt_ids))
    columns: dict[Feature, FloatArray | IntArray] = {
        "reward": scored.rewards_N,
        "entropy": scored.entropies_N,
        "clip_fraction": scored.clip_fractions_N,
        "log_length": np.log1p(scored.lengths_N),
        "truncated": scored.truncated_N.astype(np.float64),
        "age": scored.ages_Q[scored.rows_N],
        "uses": uses_N,
        "advantage": scored.advantages_N,
        "group_reward": (sums_Q / np.maximum(sizes_Q, 1))[scored.rows_N],
        "progress": np.full(len(scored), scored.progress),
    }
    features_NF = np.stack([columns[name] for name in FEATURES], axis=1).astype(np.float64)
    wrong = np.flatnonzero(~np.isfinite(features_NF).all(axis=0)).tolist()
    if wrong:
        raise InvalidInputError(
            "a feature of a rollout is not a finite number",
            got=", ".join(FEATURES[i] for i in wrong),
            allowed="finite numbers",
            fix="pass 0 where something was not measured",
        )
    return features_NF
