"""What a planner asks of whoever carries out its plans, what a trainer can do, and the check of one against the other.

Every consumer (the lab, TRL, verl, :mod:`allotment.integrations.generic`) reads the declaration: it carries all of it
out, or refuses the planner by name with the reason and the planners that work.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from allotment.errors import ConfigError
from allotment.registry import OBJECTIVES, PLANNERS, SELECTORS, Registry, Row

if TYPE_CHECKING:
    from allotment.planning.planner import Planner
    from allotment.selection import SelectorEntry, SelectorNeeds

Measurement = Literal["scores", "lengths", "answers"]
"""What ``tell`` may take of each rollout beside its reward."""


@dataclass(frozen=True)
class Contract:
    """What carrying out a planner takes. The defaults: one round of counts that sum to the budget, told rewards."""

    several_rounds: bool = False
    """Whether a step has further rounds, decided by what came back in the earlier ones."""
    in_tokens: bool = False
    """Whether the budget counts completion tokens."""
    spends: tuple[float, float] = (1.0, 1.0)
    """Fewest and most rollouts of a step, as a share of the budget."""
    leaves_out: bool = False
    """Whether a prompt that is asked may get no rollouts."""
    weights: bool = False
    """Whether plans carry :attr:`~allotment.types.Plan.weights`."""
    baselines: bool = False
    """Whether plans carry :attr:`~allotment.types.Plan.baselines`."""
    own_advantages: str | None = None
    """Name of the advantages that its rounds need, where those of the estimator would be biased."""
    told: frozenset[Measurement] = frozenset()
    """What it must be told beside rewards."""
    selects: SelectorNeeds | None = None
    """What its :attr:`~allotment.planning.planner.Planner.selector` needs and brings; None where it has none."""

    @property
    def is_exact(self) -> bool:
        """Whether a step has exactly the rollouts of the budget."""
        return self.spends == (1.0, 1.0)


@dataclass(frozen=True)
class Capability:
    """What a trainer can carry out. The defaults: one round of exactly the budget, with weights and baselines."""

    name: str
    """The trainer, as a person calls it."""
    several_rounds: bool = False
    in_tokens: bool = False
    any_size: bool = False
    """Whether a step may have more or fewer rollouts than the budget."""
    leaves_out: bool = True
    """Whether prompts may get no rollouts."""
    selections: bool = True
    """Whether selections are trained on."""
    weights: bool = True
    baselines: bool = True
    own_advantages: frozenset[str] = frozenset()
    told: frozenset[Measurement] = frozenset()
    columns: frozenset[str] = frozenset()
    """Columns of :class:`~allotment.selection.Scored` that it can fill beside rewards, advantages and lengths."""
    looks_back: bool = False
    """Whether it keeps rollouts of earlier steps."""
    offers: frozenset[str] = frozenset()
    """What it can tell a planner about prompts: ``embeddings``, ``success_probability``."""
    objectives: frozenset[str] | None = None
    """The objectives it has; None for all."""


@dataclass(frozen=True)
class PlannerEntry:
    """The declaration of a planner by name, beside its class."""

    make: Callable[..., Planner]
    """Makes one from ``budget``, ``bounds``, ``estimator``, ``seed`` and further settings."""
    contract: Contract = Contract()
    """Of a planner made with its default settings."""
    needs: tuple[str, ...] = ()
    """What a trainer must offer: ``embeddings``, ``success_probability``."""
    candidates: int = 1
    """Prompts that are offered for each one trained on, by default."""
    estimator: Literal["rloo", "dr_grpo", "shrinkage"] | None = None
    """The estimator it is made for, where none is named; None for that of the trainer."""
    row: Row | None = None


def obstacle(needed: Contract, trainer: Capability) -> str | None:
    """Why the trainer cannot carry out a planner; None if it can."""
    missing = sorted(needed.told - trainer.told)
    if needed.several_rounds and not trainer.several_rounds:
        return "it decides in several rounds of a step (as rounds=2), and this takes a planner of one round (rounds=1)"
    if needed.own_advantages is not None and needed.own_advantages not in trainer.own_advantages:
        return f"its loss needs the advantages {needed.own_advantages!r}"
    if needed.in_tokens and not trainer.in_tokens:
        return "its budget is in tokens, and a step has a fixed number of rollouts"
    if not needed.is_exact and not trainer.any_size:
        return "it does not spend its budget exactly, and a step has a fixed number of rollouts"
    if needed.leaves_out and not trainer.leaves_out:
        return "it gives some prompts no rollouts"
    if needed.weights and not trainer.weights:
        return "its plans carry weights of prompts"
    if needed.baselines and not trainer.baselines:
        return "its plans carry baselines"
    if missing:
        can = f", or with {' and '.join(sorted(trainer.told))}" if trainer.told else ""
        return f"it must be told {' and '.join(missing)} of every rollout, and can be told rewards alone{can}"
    return None if needed.selects is None else selection_obstacle(needed.selects, trainer)


def selection_obstacle(needed: SelectorNeeds, trainer: Capability) -> str | None:
    """Why the trainer cannot carry out a selector; None if it can."""
    missing = sorted(needed.columns - trainer.columns)
    if not trainer.selections:
        return "it trains on a selection of its rollouts, or weighs them its own way"
    if needed.looks_back and not trainer.looks_back:
        return "it chooses among rollouts of earlier steps too"
    if missing:
        return f"its selection needs {' and '.join(missing)} of every rollout"
    return None


def entry_obstacle(entry: PlannerEntry, trainer: Capability) -> str | None:
    """The same for a planner by name, before it is made."""
    missing = [item for item in entry.needs if item not in trainer.offers]
    if missing:
        return f"it needs the {' and '.join(missing).replace('_', ' ')} of prompts"
    return obstacle(entry.contract, trainer)


def works_with(trainer: Capability) -> tuple[str, ...]:
    """The names of the planners that a trainer can carry out."""
    return tuple(name for name, entry in PLANNERS if entry_obstacle(entry, trainer) is None)


def check_planner(planner: Planner, trainer: Capability) -> None:
    """Refuse a planner that the trainer cannot carry out: ConfigError with the reason, and the planners that work."""
    refuse(PLANNERS, planner.name, trainer, obstacle(planner.contract, trainer), works_with(trainer))


def check_planner_name(name: str, trainer: Capability) -> str:
    """The name as the registry spells it; ConfigError if there is no such planner, or as :func:`check_planner`."""
    name = PLANNERS.canonical(name)
    refuse(PLANNERS, name, trainer, entry_obstacle(PLANNERS[name], trainer), works_with(trainer))
    return name


def check_selector_name(name: str, trainer: Capability) -> SelectorEntry:
    """The selector's declaration; ConfigError if there is none, or the trainer cannot carry it out."""
    works = tuple(other for other, entry in SELECTORS if selection_obstacle(entry.needs, trainer) is None)
    refuse(SELECTORS, name, trainer, selection_obstacle(SELECTORS[name].needs, trainer), works)
    return SELECTORS[name]


def check_objective_names(names: tuple[str, ...], trainer: Capability) -> None:
    """Refuse an objective that the trainer has not: ConfigError with the objectives that it has."""
    works = tuple(name for name in OBJECTIVES.names if trainer.objectives is None or name in trainer.objectives)
    for name in names:
        is_there = trainer.objectives is None or name in trainer.objectives
        refuse(OBJECTIVES, name, trainer, None if is_there else "its loss is not among the trainer's", works)


def refuse(kind: Registry[Any], name: str, trainer: Capability, reason: str | None, works: tuple[str, ...]) -> None:
    """Raise the error that names a method, the reason, and what works; nothing where there is no reason."""
    if reason is not None:
        raise ConfigError(
            f"{trainer.name} cannot carry out the {kind.kind} {name!r}: {reason}",
            got=name,
            allowed=f"with {trainer.name}: {', '.join(works) or 'none'}",
            fix="choose one of them, or train in the lab (allotment train lab)",
        )
