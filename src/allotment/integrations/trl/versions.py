"""Which versions of TRL this adapter fits, checked when it is imported."""

from __future__ import annotations

from importlib.metadata import version

from packaging.version import Version

from allotment.integrations import versions

OLDEST, NEWEST = "0.29.0", "1.16.0"
"""Both tested; versions between them are of the same make. A newer one is tried, with a warning."""


def scores_none_as_zero() -> bool:
    """Whether TRL takes the reward of a rollout that no reward function scored for 0; from 1.6 on it leaves it out."""
    return Version(version("trl")) < Version("1.6.0")


def check_trl() -> str | None:
    """None for a tested version, else what to warn of.

    Raises:
        MissingExtraError: TRL is older than the oldest version that fits.
    """
    return versions.check_version("trl", "TRL", OLDEST, NEWEST, parts=2)


def check_methods(trainer: type) -> None:
    """Refuse a trainer that lacks a method the adapter works through.

    Raises:
        MissingExtraError: a method is missing.
    """
    allowed = f"TRL's GRPOTrainer or RLOOTrainer, {OLDEST} to {NEWEST}, or a class derived from one"
    versions.check_methods(trainer, _METHODS, package="trl", newest=NEWEST, allowed=allowed)


_METHODS = (
    "get_train_dataloader",
    "_generate_and_score_completions",
    "_calculate_rewards",
    "_save_checkpoint",
    "_load_optimizer_and_scheduler",
)
