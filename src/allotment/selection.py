"""After generation: which of the rollouts are trained on, and how each counts (numpy alone).

What a selector sees (:class:`Scored`), says (:class:`Selection`) and is (:class:`Selector`). Those of the papers:
:mod:`allotment.methods.selectors`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from allotment.errors import ConfigError, InvalidInputError
from allotment.registry import Row
from allotment.state import State, Stateful, check_state
from allotment.types import FloatArray, IntArray, PromptId

Scope = Literal["generated", "kept"]
"""All rollouts that were generated, or those that are trained on."""
Column = Literal["truncated", "entropies", "clip_fractions", "answers"]
"""Columns of :class:`Scored` that not every trainer can fill."""
Brings = Literal["advantages", "rewards"]


@dataclass(frozen=True, eq=False)
class Scored:
    """The N verified rollouts a selector chooses from, in Q groups; a group is one visit of a prompt.

    Groups of this step have age 0. A selector with a ``window`` above 1 also sees the groups of earlier steps.
    """

    step: int
    """The step, from 1."""
    progress: float
    """Share of the training run that is done, in [0, 1]."""
    prompt_ids: tuple[PromptId, ...]
    """[Q] the prompt of each group; a prompt visited twice within the window stands twice."""
    rows_N: IntArray
    """[N] the group of each rollout."""
    rewards_N: FloatArray
    """[N] verified rewards."""
    advantages_N: FloatArray
    """[N] advantages within whole groups, by the estimator of the run."""
    lengths_N: IntArray
    """[N] completion tokens."""
    truncated_N: npt.NDArray[np.bool_]
    """[N] whether a rollout was cut at the length limit."""
    entropies_N: FloatArray
    """[N] mean entropy of the policy over the tokens of a rollout, in nats."""
    ages_Q: IntArray
    """[Q] steps since the group was generated; 0 now."""
    numbers_N: IntArray
    """[N] a number for each rollout, unique in the run and the same at every age."""
    clip_fractions_N: FloatArray
    """[N] share of a rollout's tokens whose probability has left [0.8, 1.2] times that at generation; 0 at age 0."""
    answers_N: tuple[str | None, ...] | None = None
    """[N] extracted answers, None where there is none."""

    def __len__(self) -> int:
        """N, the number of rollouts."""
        return len(self.rows_N)


@dataclass(frozen=True, eq=False)
class Selection:
    """Which rollouts are trained on, how each counts, and against what."""

    weights_N: FloatArray
    """[N] factor of each rollout in the loss, finite, >= 0; 0 leaves it out."""
    advantages_N: FloatArray | None = None
    """[N] advantages to use; None for those of the run's estimator."""
    rewards_N: FloatArray | None = None
    """[N] rewards that the estimator turns into advantages; None for the verified ones."""
    baseline: Scope = "generated"
    """Whether the estimator compares a rollout with its whole group, or with what is kept of it."""
    denominator: Scope = "generated"
    """Whether n_q, Q and N in the loss count all rollouts of the groups, or the kept ones. With ``"kept"`` groups of
    which nothing is kept do not count in Q."""

    @property
    def is_kept(self) -> npt.NDArray[np.bool_]:
        """[N] whether each rollout is trained on."""
        return self.weights_N > 0


@dataclass(frozen=True)
class SelectorNeeds:
    """What a trainer must show a selector, and what a selection changes."""

    columns: frozenset[Column] = frozenset()
    """Columns of :class:`Scored` that it reads, beside rewards, advantages and lengths."""
    looks_back: bool = False
    """Whether it chooses among rollouts of earlier steps too."""
    weighs_single: bool = False
    """Whether it weighs single rollouts, so that what is trained on cannot be pairs."""
    brings: frozenset[Brings] = frozenset()
    """What its selections set in place of the run's own."""


@dataclass(frozen=True)
class SelectorEntry:
    """The declaration of a selector by name, beside its class."""

    make: Callable[..., Selector]
    """Makes one from ``seed`` and further settings."""
    needs: SelectorNeeds = SelectorNeeds()
    row: Row | None = None


@runtime_checkable
class Selector(Stateful, Protocol):
    """Chooses among the rollouts of a step, or of the last few."""

    @property
    def window(self) -> int:
        """Steps whose rollouts it chooses from; 1 is this step alone."""
        ...

    def select(self, scored: Scored) -> Selection:
        """Choose."""
        ...


class Stateless:
    """Base of selectors that remember nothing; random choices are a function of seed, step and rollout."""

    NEEDS = SelectorNeeds()
    window = 1

    def state_dict(self) -> State:
        """Nothing but the kind."""
        return {"kind": type(self).__name__}

    def load_state_dict(self, state: State) -> None:
        """Nothing to restore.

        Raises:
            StateError: the state is of another selector.
        """
        check_state(state, type(self).__name__, ())


def draws(seed: int, step: int, numbers_N: IntArray, purpose: str = "") -> FloatArray:
    """[N] pseudo-random numbers in [0, 1), a function of seed, step and rollout number, not of places in the batch.

    ``purpose`` sets independent draws apart.
    """
    prefix = f"{purpose}/{seed}/{step}/".encode()
    digests = b"".join(hashlib.blake2b(prefix + b"%d" % i, digest_size=8).digest() for i in numbers_N.tolist())
    return np.asarray((np.frombuffer(digests, dtype=np.uint64) >> np.uint64(11)) / 2.0**53, dtype=np.float64)


def check_selection(selection: Selection, scored: Scored) -> Selection:
    """The selection, if it fits.

    Raises:
        InvalidInputError: a column has another length than the rollouts, or holds a weight or number that cannot be.
    """
    columns = {name: getattr(selection, f"{name}_N") for name in ("weights", "advantages", "rewards")}
    for name, column_N in columns.items():
        if column_N is None:
            continue
        fits = np.shape(column_N) == (len(scored),) and bool(np.isfinite(column_N).all())
        if not fits or (name == "weights" and bool((column_N < 0).any())):
            raise InvalidInputError(
                f"the {name} of a selection cannot be used",
                got=f"shape {np.shape(column_N)} for {len(scored)} rollouts, "
                f"{int((~np.isfinite(column_N)).sum())} not finite",
                allowed="one finite number per rollout, weights >= 0",
                fix="return one entry per rollout of `scored`, 0 to leave it out",
            )
    return selection


def emptied_groups(selection: Selection, scored: Scored) -> int:
    """Groups with rollouts of which none is kept."""
    kept_Q = np.bincount(scored.rows_N, selection.is_kept, minlength=len(scored.prompt_ids))
    had_Q = np.bincount(scored.rows_N, minlength=len(scored.prompt_ids))
    return int(((had_Q > 0) & (kept_Q == 0)).sum())


def make_selector(entry: SelectorEntry, name: str, **settings: Any) -> Selector:
    """The selector of a declaration; ``seed`` and what its constructor takes.

    Raises:
        ConfigError: it does not know a setting.
        InvalidInputError: a setting is not allowed.
    """
    try:
        return entry.make(**settings)
    except TypeError as error:
        raise ConfigError(
            f"the selector {name!r} cannot be made with these settings",
            got=error,
            allowed="the arguments of its class (docs/methods.md)",
            fix="correct the setting's name",
        ) from error
