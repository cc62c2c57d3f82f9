"""After generation: which of the rollouts are trained on, and how each counts (numpy alone)."""

from allotment.selection.base import Scope, Scored, Selection, Selector, Stateless, check_selection, emptied_groups
from allotment.selection.importance import ImportanceWeights

__all__ = [
    "ImportanceWeights",
    "Scope",
    "Scored",
    "Selection",
    "Selector",
    "Stateless",
    "check_selection",
    "emptied_groups",
]
