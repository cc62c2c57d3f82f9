"""A planner's state: what is written to disk, and what is refused when it is read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Self

from allotment.errors import StateError, StateVersionError
from allotment.planning.contract import Contract
from allotment.planning.ledger import Ledger
from allotment.planning.rounds import Rounds, ledger_from_state, ledger_state
from allotment.state import State, Stateful, StateGroup, check_state, load_state, save_state

PLANNER_FILE = "planner.safetensors"
"""The planner's state inside a trainer's checkpoint."""


class SavedPlanner(ABC):
    """The half of :class:`~allotment.planning.planner.Planner` that saves and restores it, all or nothing."""

    name: str
    """Of the registry, where it was made by name; else that of its class."""
    _step: int
    _missing: int
    _ledger: Ledger
    _rounds: Rounds

    @property
    @abstractmethod
    def contract(self) -> Contract:
        """See :class:`~allotment.planning.planner.Planner`."""

    @property
    @abstractmethod
    def _parts(self) -> dict[str, Stateful]:
        """What is saved and restored beside the settings, by name."""

    @abstractmethod
    def _settings(self) -> State:
        """What must be equal where a state is taken over."""

    @property
    def _format(self) -> int:
        """Version of the state; what was under way between rounds was saved in another form by version 1."""
        return 2 if self.contract.several_rounds else 1

    def state_dict(self) -> State:
        """Settings, beliefs, open plans: everything."""
        version = {} if self._format == 1 else {"format": self._format}
        return {
            "kind": type(self).__name__,
            **version,
            "settings": self._settings(),
            "step": self._step,
            "missing": self._missing,
            "predictor": self._saved().state_dict(),
            "ledger": ledger_state(self._ledger),
        }

    def _saved(self) -> Stateful:
        """The parts as one; a single one stands alone."""
        parts = dict(self._parts)
        if self.contract.several_rounds:
            parts["rounds"] = self._rounds
        return next(iter(parts.values())) if len(parts) == 1 else StateGroup(parts)

    def load_state_dict(self, state: State) -> None:
        """Take over what :meth:`state_dict` gave, all or nothing; later plans are bit-identical.

        Raises:
            StateError: the state is of another planner, has other settings, or lacks keys.
            StateVersionError: the state was saved by another version of this planner.
        """
        check_state(state, type(self).__name__, ("settings", "step", "missing", "predictor", "ledger"))
        self._check_saved_settings(state["settings"])
        if (version := state.get("format", 1)) != self._format:
            raise StateVersionError(
                f"the state of {self.name} has another format",
                got=version,
                allowed=self._format,
                fix="load it with the version of allotment that wrote it, or start the planner anew",
            )
        ledger = ledger_from_state(state["ledger"])
        step, missing = state["step"], state["missing"]
        newest = max((plan.step for plan in ledger.plans()), default=-1)
        if not (type(step) is type(missing) is int and newest < step and missing >= 0):
            raise StateError(
                "the counters of a planner state cannot be right",
                got=f"step {step!r}, missing {missing!r}, newest open plan of step {newest}",
                allowed="step above that of every open plan, missing >= 0",
                fix="load a whole state_dict(), or start anew",
            )
        self._saved().load_state_dict(state["predictor"])  # the last that can fail; it is all or nothing itself
        self._ledger, self._step, self._missing = ledger, step, missing

    def save(self, path: str | Path) -> None:
        """Write :meth:`state_dict` to one file, atomically."""
        save_state(path, self.state_dict(), kind="planner")

    def load(self, path: str | Path) -> Self:
        """Restore what :meth:`save` wrote, and return the planner; StateError if it is damaged or does not fit."""
        self.load_state_dict(load_state(path, kind="planner"))
        return self

    def _check_saved_settings(self, saved: object) -> None:
        own = self._settings()
        if saved == own:
            return
        values = saved if isinstance(saved, dict) else {}
        different = {k: (values.get(k), own.get(k)) for k in {**own, **values} if values.get(k) != own.get(k)}
        raise StateError(
            "the planner state does not fit this planner",
            got=f"settings (saved, own) {different}",
            allowed="equal settings",
            fix="make the planner with the settings it was saved with; ask(budget=...) varies a single step",
        )
