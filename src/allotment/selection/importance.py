"""Importance weights for prompts that were left out by lot before generation."""

from __future__ import annotations

import numpy as np

from allotment.selection.base import Scored, Selection, Stateless


class ImportanceWeights(Stateless):
    """Every rollout is kept and divided by the probability with which its prompt was let through.

    With Q groups generated of ``asked`` prompts, a rollout's factor is ``Q / asked / keep_probability``: the loss,
    which averages over the Q groups, then has the expectation of the mean over all prompts asked. Dynamic Pruning
    (arXiv 2603.04135); the formula is a reconstruction.
    """

    def select(self, scored: Scored) -> Selection:
        """All rollouts, weighted; all ones where nothing was drawn."""
        if scored.keep_probability_Q is None:
            return Selection(np.ones(len(scored)))
        groups = len(np.unique(scored.rows_N))
        share = groups / (scored.asked or len(scored.prompt_ids))
        return Selection(share / scored.keep_probability_Q[scored.rows_N])
