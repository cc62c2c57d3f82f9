"""After generation: which of the rollouts are trained on, and how each counts (numpy alone).

What a selector sees (:class:`Scored`), says (:class:`Selection`) and is (:class:`Selector`). Those of the papers:
:mod:`allotment.methods.selectors`.
"""

from allotment.selection.base import (
    Scope,
    Scored,
    Selection,
    Selector,
    SelectorEntry,
    SelectorNeeds,
    Stateless,
    check_selection,
    draws,
    emptied_groups,
    make_selector,
)

__all__ = [
    "Scope",
    "Scored",
    "Selection",
    "Selector",
    "SelectorEntry",
    "SelectorNeeds",
    "Stateless",
    "check_selection",
    "draws",
    "emptied_groups",
    "make_selector",
]
