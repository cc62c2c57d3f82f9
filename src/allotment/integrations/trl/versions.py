"""Which versions of TRL this adapter fits, checked when it is imported."""

from __future__ import annotations

from importlib.metadata import version

from packaging.version import Version

from allotment.errors import MissingExtraError

OLDEST, NEWEST = Version("0.29.0"), Version("1.16.0")
"""Both tested; versions between them are of the same make. A newer one is tried, with a warning."""


def scores_none_as_zero() -> bool:
    """Whether TRL takes the reward of a rollout that no reward function scored for 0; from 1.6 on it leaves it out."""
    return Version(version("trl")) < Version("1.6.0")


def check_trl() -> str | None:
    """None for a tested version, else what to warn of.

    Raises:
        MissingExtraError: TRL is older than the oldest version that fits.
    """
    installed = Version(version("trl"))
    if installed < OLDEST:
        raise MissingExtraError(
            "this version of TRL is too old",
            got=f"trl {installed}",
            allowed=f"trl {OLDEST} to {NEWEST}",
            fix=f"pip install 'trl=={NEWEST}'",
        )
    if installed.release[:2] > NEWEST.release[:2]:
        return f"trl {installed} is newer than {NEWEST}, the newest that Allotment was tested with"
    return None


def check_methods(trainer: type) -> None:
    """Refuse a trainer that lacks a method the adapter works through.

    Raises:
        MissingExtraError: a method is missing.
    """
    missing = [name for name in _METHODS if not callable(getattr(trainer, name, None))]
    if missing:
        raise MissingExtraError(
            f"{trainer.__name__} is not a trainer that Allotment can plan for",
            got=f"no {', '.join(missing)}",
            allowed=f"TRL's GRPOTrainer or RLOOTrainer, {OLDEST} to {NEWEST}, or a class derived from one",
            fix=f"pip install 'trl=={NEWEST}', or derive the trainer from one of these",
        )


_METHODS = (
    "get_train_dataloader",
    "_generate_and_score_completions",
    "_calculate_rewards",
    "_save_checkpoint",
    "_load_optimizer_and_scheduler",
)
