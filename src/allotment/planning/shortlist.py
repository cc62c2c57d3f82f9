"""Which of many candidates a planner is asked about, where a trainer takes fewer."""

from __future__ import annotations

import numpy as np

from allotment.errors import ConfigError
from allotment.planning.planner import Planner
from allotment.planning.success import SuccessPlanner
from allotment.types import PromptId


def shortlist(planner: Planner, prompt_ids: list[PromptId], keep: int) -> list[PromptId]:
    """The ``keep`` prompts of largest expected reward variance ``E[p (1 - p)]``, in the order they stand in.

    Uncertainty counts as variance: a prompt never seen is kept before one that is known to fail. Ties go to the
    earlier prompt. Prompts left out are not drawn at random, so the gradient is that of the prompts that are kept.

    A planner that leaves out prompts itself gets all of them. ConfigError: it predicts no success probabilities.
    """
    if len(prompt_ids) <= keep or planner.contract.leaves_out:
        return prompt_ids
    if not isinstance(planner, SuccessPlanner):
        raise ConfigError(
            "this planner cannot choose among more candidates than it may train on",
            got=planner.name,
            allowed="a planner that predicts success probabilities, such as vip or uniform",
            fix="use as many candidates as prompts",
        )
    value_Q = planner.predictor.predict(prompt_ids).expected_variance()
    kept = np.argsort(-value_Q, kind="stable")[:keep]
    return [prompt_ids[q] for q in np.sort(kept)]
