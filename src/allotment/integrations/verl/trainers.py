"""verl's V1 trainers under names of their own, with a hook that tells the planner whatever estimator is used."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import transfer_queue as tq
from verl.trainer.ppo.v1.trainer_base import PPOTrainer, get_trainer_cls, register_trainer

from allotment.errors import ConfigError
from allotment.integrations.verl.checks import OWN_ESTIMATORS
from allotment.integrations.verl.config import HOOK, set_values
from allotment.integrations.verl.session import current_session
from allotment.integrations.verl.versions import check_methods

if TYPE_CHECKING:
    _Trainer: TypeAlias = Any  # whichever of verl's trainers the mixin stands in front of
else:
    _Trainer = object

check_methods(PPOTrainer, ("_compute_advantage", "_save_checkpoint"))
SAMPLER = "trainer.v1.sampler.custom_sampler"
MANAGER = "actor_rollout_ref.rollout.agent.agent_loop_manager_class"


class AllotmentTrainerMixin(_Trainer):
    """In front of one of verl's V1 trainers: the planner is told verl's raw scores, its figures join verl's metrics."""

    verl_mode: ClassVar[str]
    """The mode of verl's own that this is."""

    def __init__(self, config: Any) -> None:
        values = {"trainer.v1.trainer_mode": self.verl_mode, f"allotment.{HOOK}": True}
        if not config.actor_rollout_ref.rollout.agent.get("agent_loop_manager_class"):
            values[MANAGER] = "allotment.integrations.verl.AllotmentAgentLoopManager"
        if self.verl_mode != "sync" and not config.trainer.v1.sampler.custom_sampler.path:
            values[f"{SAMPLER}.path"] = "pkg://allotment.integrations.verl.sampler"
            values[f"{SAMPLER}.name"] = "WholeBlocks"
        set_values(config, values)
        super().__init__(config)

    def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
        session = current_session()
        keys = _final_keys(batch)
        if len(keys) < sum(not tag.get("is_padding", False) for tag in batch.tags):
            self._check_several_outputs()
        data = tq.kv_batch_get(keys=keys, partition_id=batch.partition_id, select_fields=["rm_scores", "response_mask"])
        uids = [key.rsplit("_", 2)[0] for key in keys]
        session.tell(uids, data["rm_scores"].sum(dim=1).double().numpy(), data["response_mask"].sum(dim=1).numpy())
        batch = super()._compute_advantage(batch, metrics)
        metrics.update({f"allotment/{name}": value for name, value in session.take_figures().items()})
        return batch

    def _save_checkpoint(self) -> None:
        # First the planner: a checkpoint that is complete in verl's eyes then has it.
        folder = Path(self.config.trainer.default_local_dir) / f"global_step_{self.global_steps}"
        os.makedirs(folder, exist_ok=True)
        current_session().save(folder)
        super()._save_checkpoint()

    def _check_several_outputs(self) -> None:
        if self.config.algorithm.adv_estimator in OWN_ESTIMATORS:
            raise ConfigError(
                "an agent loop gave several outputs for a rollout",
                got=f"algorithm.adv_estimator={self.config.algorithm.adv_estimator}",
                allowed="grpo, which verl computes from the last output of each",
                fix="set algorithm.adv_estimator=grpo",
            )


def _final_keys(batch: Any) -> list[str]:
    """One key, ``uid_session_index``, for each rollout: that of its last output; none for padding."""
    last: dict[str, str] = {}
    for key, tag in zip(batch.keys, batch.tags, strict=True):
        rollout, index = key.rsplit("_", 1)
        if not tag.get("is_padding", False) and int(index) >= int(last.get(rollout, key).rsplit("_", 1)[1]):
            last[rollout] = key
    return list(last.values())


for _mode in ("sync", "colocate_async", "separate_async"):
    _base = get_trainer_cls(_mode)
    register_trainer(f"allotment_{_mode}")(
        type(
            f"Allotment{_base.__name__}", (AllotmentTrainerMixin, _base), {"verl_mode": _mode, "__doc__": _base.__doc__}
        )
    )
