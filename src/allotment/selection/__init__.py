"""After generation: which of the rollouts are trained on, and how each counts (numpy alone).

===========================  =====================================================================================
:class:`PODS`                the subset of largest reward variance (arXiv 2504.13818)
:class:`MaxReward`           its baselines
:class:`RandomSubset`
:class:`CompletionPruning`   small advantages left out by lot, with importance weights (arXiv 2603.04135)
:class:`ContextualBandit`    learns from ten features which rollouts help (arXiv 2602.08499)
:class:`ImportanceWeights`   for prompts that were left out by lot before generation
:class:`Chain`               two selectors as one
===========================  =====================================================================================

:func:`pack` fills micro-batches with groups of unequal length (dense prompt packing, arXiv 2603.04135).
"""

from allotment.selection.base import (
    Scope,
    Scored,
    Selection,
    Selector,
    Stateless,
    check_selection,
    draws,
    emptied_groups,
)
from allotment.selection.chain import Chain
from allotment.selection.completion_pruning import CompletionPruning
from allotment.selection.contextual_bandit import ContextualBandit
from allotment.selection.importance import ImportanceWeights
from allotment.selection.packing import Packing, pack
from allotment.selection.pods import PODS, max_variance_subset
from allotment.selection.subsets import MaxReward, RandomSubset

__all__ = [
    "PODS",
    "Chain",
    "CompletionPruning",
    "ContextualBandit",
    "ImportanceWeights",
    "MaxReward",
    "Packing",
    "RandomSubset",
    "Scope",
    "Scored",
    "Selection",
    "Selector",
    "Stateless",
    "check_selection",
    "draws",
    "emptied_groups",
    "max_variance_subset",
    "pack",
]
