"""Which versions of verl this adapter fits, checked when it is imported."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version

from allotment.errors import MissingExtraError
from allotment.integrations import versions

TESTED = "0.9.1"
"""The first with per-prompt counts in the trainer that is verl's default; a newer one is tried, with a warning."""
PARTS = (
    ("verl.trainer.ppo.v1.trainer_base", "PPOTrainer"),
    ("verl.trainer.ppo.v1.agent_loop_tq", "AgentLoopManagerTQ"),
    ("verl.trainer.ppo.v1.replay_buffer", "ReplayBufferAsync"),
    ("verl.trainer.ppo.core_algos", "register_adv_est"),
    ("verl.trainer.ppo.checkpoint_callback", "CheckpointCallback"),
)
"""Modules and names of verl's that the adapter works through."""


def check_verl() -> str | None:
    """None for the tested version, else what to warn of.

    Raises:
        MissingExtraError: verl is older.
    """
    reason = ", whose V1 trainer reads a number of rollouts for each prompt"
    return versions.check_version("verl", "verl", TESTED, TESTED, parts=3, reason=reason)


def check_parts(parts: tuple[tuple[str, str], ...] = PARTS) -> None:
    """Refuse a verl, such as a source tree of another date, that lacks a part the adapter works through.

    Raises:
        MissingExtraError: with the names of what is missing. One for a package that verl needs itself is left to
            :func:`allotment.errors.needs_extra`.
    """
    missing = [f"{module}.{name}" for module, name in parts if not _has(module, name)]
    if missing:
        raise MissingExtraError(
            "this verl lacks what Allotment works through",
            got=f"verl {version('verl')} without {', '.join(missing)}",
            allowed=f"verl {TESTED}, or a later source tree that has them",
            fix=f"pip install 'verl=={TESTED}'",
        )


def _has(module: str, name: str) -> bool:
    try:
        return hasattr(import_module(module), name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "verl":
            return False
        raise


def check_methods(cls: type, names: tuple[str, ...]) -> None:
    """Refuse a class of verl's that lacks a method the adapter works through.

    Raises:
        MissingExtraError: a method is missing.
    """
    versions.check_methods(cls, names, package="verl", newest=TESTED, allowed=f"that of verl {TESTED}")
