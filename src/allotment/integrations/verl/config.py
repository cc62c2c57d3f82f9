"""What Allotment reads of verl's configuration: its own block ``allotment``, and the batch arithmetic around it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from omegaconf import DictConfig, OmegaConf, open_dict
from pydantic import Field

from allotment.config import Config
from allotment.errors import ConfigError
from allotment.integrations.capabilities import VERL
from allotment.integrations.fitting import Sizes, fitted_planner, fitted_selector, imported
from allotment.integrations.verl.checks import check_config, check_mode, warn_of_nothing_to_allocate
from allotment.planning import Planner
from allotment.planning.making import parameters
from allotment.registry import PLANNERS
from allotment.selection import Selector

HOOK = "trainer_hook"
"""Key of the block ``allotment`` that the trainer hook sets for the manager to see."""


class AllotmentSettings(Config):
    """The block ``allotment`` of verl's configuration; every field is also an override, ``+allotment.planner=vip``.

    Raises:
        ConfigError: a key is unknown, or a value is not allowed (:meth:`from_values`).
    """

    planner: str = "vip"
    """A planner by name (docs/verl.md says which), or module:function, called with planner_kwargs and a budget."""
    planner_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the planner: bounds (default 3 and the larger of 32 and 4 n), estimator, seed."""
    select: str | None = None
    """Which rollouts are trained on, and how each counts: a selector by name; None: all, or as the planner has it."""
    select_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the selector, such as keep."""
    prompt_weighting: Literal["prompt", "rollout"] = "prompt"
    """prompt: advantages times mean(n) / n, so that each prompt counts the same; rollout: as they are."""
    success_key: str | None = "acc"
    """Entry of reward_extra_info, 0 or 1, that says whether a rollout is right; where there is none, its score does.
    With the trainer hook."""
    success_threshold: float = Field(0.5, allow_inf_nan=False)
    """What is told of a rollout is a success from here on, to a planner given by name."""
    trained_prompts: int | None = Field(None, ge=1)
    """Of the prompts of a batch, how many get rollouts: those of largest expected reward variance; the others get 0."""
    prompt_id: str = "index"
    """Key of extra_info that names a prompt within its data_source; a hash of the prompt where it is missing."""
    check_prompts: bool = True
    """Whether a name that stood for another prompt is an error; false where a prompt is worded anew each time."""
    prompt_timeout: float | None = Field(None, gt=0)
    """Seconds after which a prompt that has not come back fails; None: it is waited for."""
    trainer_hook: bool = False
    """Set by the trainer hook itself."""


@dataclass(frozen=True)
class Batch:
    """The arithmetic of a step."""

    prompts: int
    """Prompts of a batch, data.train_batch_size."""
    mean: int
    """Mean rollouts of a prompt, actor_rollout_ref.rollout.n."""
    is_sync: bool
    """Whether a step trains on exactly the prompts it fetched."""
    updates: int = 1
    """Parts in which an asynchronous trainer trains on a batch, parameter_sync_step."""
    steps: int = 0
    """Training steps of the run; 0 where that is not known."""

    @property
    def budget(self) -> int:
        """Rollouts of a batch."""
        return self.prompts * self.mean

    @property
    def block(self) -> int:
        """Prompts that are trained on at a time."""
        return self.prompts // self.updates


class TrainedSizes(Sizes):
    """A batch of verl's, as a planner must fit it."""

    @property
    def terms(self) -> tuple[str, str]:
        """Verl's."""
        is_all = self.prompts * self.mean == self.budget
        return "train_batch_size x n", "n" if is_all else "train_batch_size x n / trained_prompts"


def read(config: DictConfig) -> tuple[AllotmentSettings, Batch]:
    """Settings and batch sizes of a run.

    Raises:
        ConfigError: something in verl's configuration rules out counts of their own for each prompt.
    """
    block = OmegaConf.to_container(config.get("allotment") or OmegaConf.create(), resolve=True)
    settings = AllotmentSettings.from_values(cast(dict[str, Any], block), "allotment")
    rollout, mode = config.actor_rollout_ref.rollout, str(config.trainer.v1.trainer_mode)
    updates = int(config.trainer.v1.get(mode, {}).get("parameter_sync_step", 1))
    batch = Batch(int(config.data.train_batch_size), int(rollout.n), mode == "sync", updates, _steps(config))
    check_config(config, settings, batch)
    return settings, batch


def planner_of(config: DictConfig, settings: AllotmentSettings, batch: Batch) -> Planner:
    """The planner of a run, checked against its batch.

    Raises:
        ConfigError: it cannot be made, its budget or bounds do not fit, or verl cannot carry it out.
    """
    own = settings.planner_kwargs
    given: Any = settings.planner
    if ":" in settings.planner:
        make = imported(settings.planner, setting="allotment.planner=", where="the trainer")
        given = make(budget=batch.budget, **own)
    kept = settings.trained_prompts or batch.prompts
    planner = fitted_planner(
        given,
        TrainedSizes(batch.budget, batch.mean, kept),
        VERL,
        settings=own,
        offered={"success_threshold": settings.success_threshold},
        estimator=priced_estimator(config),
        seed=_seed(config),
    )
    check_mode(config, batch.is_sync, planner)
    warn_of_nothing_to_allocate(planner, batch.block, batch.mean)
    draws = planner.contract.leaves_out and planner.name in PLANNERS
    if settings.trained_prompts and draws and "trained_prompts" not in parameters(PLANNERS[planner.name].make):
        raise ConfigError(
            "the planner says itself how many prompts get rollouts",
            got=f"planner {planner.name}, allotment.trained_prompts={settings.trained_prompts}",
            allowed="no trained_prompts",
            fix="leave allotment.trained_prompts out; data.train_batch_size is the number of candidates",
        )
    return planner


def selector_of(config: DictConfig, settings: AllotmentSettings, batch: Batch, planner: Planner) -> Selector | None:
    """What chooses among the rollouts of a batch: ``allotment.select``, or the planner's own way; None for all.

    Raises:
        ConfigError: it cannot be made, or verl cannot carry it out.
    """
    own, name = settings.select_kwargs, settings.select
    selector = fitted_selector(name, planner, VERL, settings=own, seed=_seed(config))
    if name is not None:
        check_mode(config, batch.is_sync, name)
    return selector


def priced_estimator(config: DictConfig) -> str:
    """The estimator whose variance is priced, nearest to the one that is trained with."""
    return "rloo" if "rloo" in config.algorithm.adv_estimator else "dr_grpo"


def resume_folder(config: DictConfig) -> Path | None:
    """The checkpoint that verl resumes from, found as its trainer finds it; None for a new run."""
    from verl.utils.checkpoint.checkpoint_manager import find_latest_ckpt_path

    if config.trainer.resume_mode == "disable":
        return None
    if config.trainer.resume_mode == "resume_path":
        return Path(config.trainer.resume_from_path).absolute()
    folder = find_latest_ckpt_path(str(run_folder(config)))
    return None if folder is None else Path(folder)


def run_folder(config: DictConfig) -> Path:
    """Where verl's checkpoints and Allotment's ``rollouts.jsonl`` lie."""
    return Path(config.trainer.default_local_dir).absolute()


def set_values(config: DictConfig, values: dict[str, Any]) -> None:
    """Set keys, which may be new, by dotted name."""
    with open_dict(config):
        for key, value in values.items():
            OmegaConf.update(config, key, value, force_add=True)


def _seed(config: DictConfig) -> int:
    return int(config.data.get("seed") or 0)


def _steps(config: DictConfig) -> int:
    """Training steps, which verl's trainer writes into the configuration before the manager is made."""
    optimiser = config.actor_rollout_ref.actor.optim
    return max(int(config.trainer.total_training_steps or optimiser.get("total_training_steps") or 0), 0)
