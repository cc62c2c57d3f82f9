"""A planner as a state, and back: settings, beliefs, open plans, rounds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from allotment.errors import StateError, StateVersionError
from allotment.planning.ledger import Ledger
from allotment.planning.rounds import ledger_from_state, ledger_state
from allotment.state import State, Stateful, StateGroup, check_state

if TYPE_CHECKING:
    from allotment.planning.planner import Planner
    from allotment.types import Plan

LIMITS = ("budget", "lower", "upper", "estimator", "seed", "prompts", "trained_prompts")
"""Settings that belong to a trainer's batch, not to what is believed."""


def saved_state(planner: Planner) -> State:
    """What :meth:`Planner.state_dict` gives."""
    version = {} if _format(planner) == 1 else {"format": _format(planner)}
    return {
        "kind": type(planner).__name__,
        **version,
        "settings": planner._settings(),
        "step": planner._step,
        "missing": planner.missing_rollouts,
        "predictor": _parts(planner).state_dict(),
        "ledger": ledger_state(planner._ledger),
    }


def load_saved_state(planner: Planner, state: State) -> None:
    """What :meth:`Planner.load_state_dict` does."""
    check_state(state, type(planner).__name__, ("settings", "step", "missing", "predictor", "ledger"))
    _check_settings(state["settings"], planner._settings())
    if (version := state.get("format", 1)) != _format(planner):
        raise StateVersionError(
            f"the state of {planner.name} has another format",
            got=version,
            allowed=_format(planner),
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
    _check_counts(planner, ledger.plans())
    if planner.contract.several_rounds:
        _check_rounds(state["predictor"], {f"{plan.step}.{plan.round}" for plan in ledger.plans()})
    _parts(planner).load_state_dict(state["predictor"])  # the last that can fail; it is all or nothing itself
    planner._ledger, planner._step, planner.missing_rollouts = ledger, step, missing


def with_own_limits(planner: Planner, state: State) -> State:
    """The state of a planner whose batch was another, as one of this planner: the same beliefs and step, its own
    :data:`LIMITS`, no open plan, and what it alone keeps as it is now. As it stands where the limits are equal.
    """
    check_state(state, type(planner).__name__, ("settings", "predictor"))
    saved, own = state["settings"], planner._settings()
    limits = {name: own[name] for name in LIMITS if name in own}
    if not isinstance(saved, dict) or all(saved.get(name) == value for name, value in limits.items()):
        return state
    parts = {name: part.state_dict() for name, part in _part_dict(planner).items()}
    kept = state["predictor"]
    if kept.get("kind") != StateGroup.KIND:  # a single one stands alone
        kept = {next(iter(parts)): kept}
    parts |= {name: kept[name] for name in planner._parts if name in kept}
    together = next(iter(parts.values())) if len(parts) == 1 else {"kind": StateGroup.KIND, **parts}
    return {**state, "settings": {**saved, **limits}, "predictor": together, "ledger": ledger_state(Ledger())}


def _check_settings(saved: object, own: State) -> None:
    if saved != own:
        values = saved if isinstance(saved, dict) else {}
        different = {k: (values.get(k), own.get(k)) for k in {**own, **values} if values.get(k) != own.get(k)}
        raise StateError(
            "the planner state does not fit this planner",
            got=f"settings (saved, own) {different}",
            allowed="equal settings",
            fix="make the planner with the settings it was saved with; ask(budget=...) varies a single step, "
            f"load_state_dict(..., settings='own') lets {', '.join(LIMITS[:5])} differ",
        )


def _check_counts(planner: Planner, plans: tuple[Plan, ...]) -> None:
    """The counts of every open plan lie within the planner's bounds."""
    (lower, upper), contract = planner.bounds, planner.contract
    least = 1 if contract.several_rounds else lower  # the bounds hold over all rounds
    may_be_zero = contract.several_rounds or contract.leaves_out
    for plan in plans:
        n_Q = plan.counts
        if not ((n_Q <= upper) & ((n_Q >= least) | ((n_Q == 0) & may_be_zero))).all():
            raise StateError(
                "the counts of an open plan are not within the planner's bounds",
                got=f"from {n_Q.min()} to {n_Q.max()} rollouts a prompt in step {plan.step}",
                allowed=f"{lower} to {upper}",
                fix="load a whole state_dict(), or start anew",
            )


def _check_rounds(parts: object, open_rounds: set[str]) -> None:
    """Every open plan is of the round that its step waits for."""
    rounds = parts.get("rounds", parts) if isinstance(parts, dict) else None  # they stand alone beside nothing else
    steps = rounds.get("steps") if isinstance(rounds, dict) else None
    entries = steps.items() if isinstance(steps, dict) else ()
    waiting = {f"{n}.{entry.get('round')}" for n, entry in entries if isinstance(entry, dict) and entry.get("is_open")}
    if unknown := open_rounds - waiting:
        raise StateError(
            "an open plan of a planner state belongs to no step",
            got=f"plans of step and round {', '.join(sorted(unknown))}",
            allowed="an entry in `rounds` for the step of each open plan, which waits for its round",
            fix="load a whole state_dict(), or start anew",
        )


def _format(planner: Planner) -> int:
    """Version of the state; steps between two rounds were saved in another form by version 1."""
    return 2 if planner.contract.several_rounds else 1


def _parts(planner: Planner) -> Stateful:
    """The parts as one; a single one stands alone."""
    parts = _part_dict(planner)
    return next(iter(parts.values())) if len(parts) == 1 else StateGroup(parts)


def _part_dict(planner: Planner) -> dict[str, Stateful]:
    return {**planner._parts, **({"rounds": planner._rounds} if planner.contract.several_rounds else {})}
