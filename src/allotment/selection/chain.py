"""Two selectors as one, such as a planner's own importance weights and completion pruning."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from allotment.errors import ConfigError
from allotment.selection.base import Scope, Scored, Selection, Selector, check_selection
from allotment.state import State, Together


class Chain:
    """Keeps what both keep, each rollout with the product of both weights.

    Both see all rollouts; the second sees the advantages that the first sets. A selector that keeps every rollout fits
    any scope, because generated and kept are the same to it.

    Args:
        first: applied first, such as ``planner.selector``.
        second: applied to the same rollouts.

    Raises:
        ConfigError: one looks further back than the other.
    """

    def __init__(self, first: Selector, second: Selector) -> None:
        if first.window != second.window:
            raise _refusal(
                first,
                second,
                f"windows of {first.window} and {second.window} steps",
                "two selectors that choose from the same steps",
            )
        self.first, self.second = first, second
        self._both = Together({"first": first, "second": second})

    @property
    def window(self) -> int:
        """That of both."""
        return self.first.window

    def select(self, scored: Scored) -> Selection:
        """Choose by both.

        Raises:
            ConfigError: the selections contradict each other: both set advantages or rewards, the first sets rewards
                (the second would choose by those they replace), or both leave rollouts out but count or compare
                in different scopes.
            InvalidInputError: a selection does not fit the rollouts.
        """
        first = check_selection(self.first.select(scored), scored)
        if first.rewards_N is not None:
            raise _refusal(
                self.first,
                self.second,
                "rewards set by the first, which the second does not choose by",
                "a first selector that keeps the verified rewards",
            )
        if first.advantages_N is not None:
            scored = replace(scored, advantages_N=first.advantages_N)
        second = check_selection(self.second.select(scored), scored)
        if first.advantages_N is not None and (second.advantages_N is not None or second.rewards_N is not None):
            raise _refusal(
                self.first, self.second, "advantages or rewards set by both", "advantages set by one of them"
            )
        return Selection(
            first.weights_N * second.weights_N,
            first.advantages_N if second.advantages_N is None else second.advantages_N,
            second.rewards_N,
            self._scope("baseline", first, second),
            self._scope("denominator", first, second),
        )

    def _scope(self, name: str, first: Selection, second: Selection) -> Scope:
        one, other = (cast(Scope, getattr(selection, name)) for selection in (first, second))
        if one == other or second.is_kept.all():
            return one
        if first.is_kept.all():
            return other
        raise _refusal(
            self.first,
            self.second,
            f"{name}s over {one} and over {other} rollouts",
            f"one {name} for both, or one of them keeping every rollout",
        )

    def state_dict(self) -> State:
        """That of both."""
        return self._both.state_dict()

    def load_state_dict(self, state: State) -> None:
        """Take over what :meth:`state_dict` gave, all or nothing.

        Raises:
            StateError: it is of other selectors, or a part does not fit.
        """
        self._both.load_state_dict(state)


def _refusal(first: Selector, second: Selector, got: str, allowed: str) -> ConfigError:
    names = f"{type(first).__name__} and {type(second).__name__}"
    return ConfigError(
        f"{names} cannot be combined", got=got, allowed=allowed, fix="use one of them, or another planner"
    )
