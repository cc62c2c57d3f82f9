"""verl's V1 trainers under names of their own, with a hook that tells the planner whatever estimator is used."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np
import transfer_queue as tq
from tensordict.tensorclass import NonTensorData
from verl.trainer.ppo.v1.trainer_base import PPOTrainer, get_trainer_cls, register_trainer

from allotment.errors import ConfigError
from allotment.integrations.verl.checks import OWN_ESTIMATORS
from allotment.integrations.verl.config import HOOK, set_values
from allotment.integrations.verl.passes import FixedPasses, is_padding, optimizer_passes, row_multiple
from allotment.integrations.verl.rewards import told_rewards
from allotment.integrations.verl.running import check_start, current_session
from allotment.integrations.verl.versions import check_methods
from allotment.integrations.verl.weighing import final_keys, weigh

if TYPE_CHECKING:
    _Trainer: TypeAlias = Any  # whichever of verl's trainers the mixin stands in front of
else:
    _Trainer = object

check_methods(
    PPOTrainer,
    (
        "step",
        "_get_required_batch_multiple",
        "_compute_advantage",
        "_update_actor",
        "_update_critic",
        "_save_checkpoint",
    ),
)
SAMPLER = "trainer.v1.sampler.custom_sampler"
MANAGER = "actor_rollout_ref.rollout.agent.agent_loop_manager_class"


class AllotmentTrainerMixin(_Trainer):
    """In front of one of verl's V1 trainers: the planner is told verl's raw scores, or what the reward manager says of
    success; its figures join verl's metrics; each batch gets the configured number of optimizer passes.
    """

    verl_mode: ClassVar[str]
    """The mode of verl's own that this is."""
    actor_rollout_wg: Any
    critic_wg: Any

    def __init__(self, config: Any) -> None:
        values = {"trainer.v1.trainer_mode": self.verl_mode, f"allotment.{HOOK}": True}
        if not config.actor_rollout_ref.rollout.agent.get("agent_loop_manager_class"):
            values[MANAGER] = "allotment.integrations.verl.AllotmentAgentLoopManager"
        if self.verl_mode != "sync" and not (config.trainer.v1.sampler.get("custom_sampler") or {}).get("path"):
            values[f"{SAMPLER}.path"] = "pkg://allotment.integrations.verl.sampler"
            values[f"{SAMPLER}.name"] = "NearBudget"
        set_values(config, values)
        check_start(config)  # before a model is loaded
        super().__init__(config)
        self._passes_made = 0

    def step(self, metrics: dict[str, Any], timing_raw: dict[str, Any]) -> Any:
        """A step of verl's; the figures are of all its updates together, which verl would average."""
        self._passes_made = 0
        batch = super().step(metrics, timing_raw)
        rows = sum(not is_padding(tag) for tag in batch.tags)
        figures = {
            **current_session().take_figures(),
            "rollouts": float(rows),
            "padding_share": 1 - rows / max(len(batch), 1),
            "optimizer_steps": float(self._passes_made),
        }
        metrics.update({f"allotment/{name}": value for name, value in figures.items()})
        return batch

    def _passes_of(self, model: Any) -> int:
        prompts = self.config.data.train_batch_size // self.parameter_sync_step
        return optimizer_passes(int(prompts), int(model.ppo_mini_batch_size))

    def _get_required_batch_multiple(self, dp_size: int) -> int:
        passes = {"actor": self._passes_of(self.config.actor_rollout_ref.actor)}
        if self.use_critic:
            passes["critic"] = self._passes_of(self.config.critic)
        return row_multiple(self.config, dp_size, passes)

    def _update_actor(self, batch: Any, metrics: dict[str, Any]) -> Any:
        actor, group = self.config.actor_rollout_ref.actor, self.actor_rollout_wg
        passes = self._passes_of(actor)
        self.actor_rollout_wg = FixedPasses(group, passes)
        try:
            batch = super()._update_actor(batch, metrics)
        finally:
            self.actor_rollout_wg = group
        self._passes_made += passes * int(actor.ppo_epochs)
        return batch

    def _update_critic(self, batch: Any, metrics: dict[str, Any]) -> Any:
        group = self.critic_wg
        self.critic_wg = FixedPasses(group, self._passes_of(self.config.critic))
        try:
            return super()._update_critic(batch, metrics)
        finally:
            self.critic_wg = group

    def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
        session, keys = current_session(), final_keys(batch)
        is_own = self.config.algorithm.adv_estimator in OWN_ESTIMATORS
        if is_own and len(keys) < sum(not is_padding(tag) for tag in batch.tags):
            self._refuse_several_outputs()
        uids = [key.rsplit("_", 2)[0] for key in keys]
        session.tell(uids, *self._told(batch.partition_id, keys))
        batch = super()._compute_advantage(batch, metrics)
        if not is_own:
            weigh(batch, keys, session.prompt_factors(uids))
        return batch

    def _told(self, partition: str, keys: list[str]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """[N] twice, what the planner is told of each rollout, and its response tokens."""
        key, is_colocated = current_session().success_key, self.reward_loop_manager.reward_loop_worker_handles is None
        column = key if is_colocated and key is not None else "extra_fields"  # where verl puts reward_extra_info
        fields = ["rm_scores", "response_mask", column]
        data = tq.kv_batch_get(keys=keys, partition_id=partition, select_fields=fields)
        values = data[column] if column in data.keys() else []  # noqa: SIM118 (a TensorDict)
        extras = [value.data if isinstance(value, NonTensorData) else value for value in values]
        if column == key:
            extras = [{"reward_extra_info": {key: value}} for value in extras]
        told_N = told_rewards(data["rm_scores"].sum(dim=1).double().numpy(), extras, key)
        return told_N, data["response_mask"].sum(dim=1).numpy()

    def _save_checkpoint(self) -> None:
        # First the planner: a checkpoint that is complete in verl's eyes then has it.
        folder = Path(self.config.trainer.default_local_dir) / f"global_step_{self.global_steps}"
        os.makedirs(folder, exist_ok=True)
        current_session().save(folder)
        super()._save_checkpoint()

    def _refuse_several_outputs(self) -> None:
        raise ConfigError(
            "an agent loop gave several outputs for a rollout",
            got=f"algorithm.adv_estimator={self.config.algorithm.adv_estimator}",
            allowed="grpo, which verl computes from the last output of each",
            fix="set algorithm.adv_estimator=grpo",
        )


for _mode in ("sync", "colocate_async", "separate_async"):
    _base = get_trainer_cls(_mode)
    register_trainer(f"allotment_{_mode}")(
        type(
            f"Allotment{_base.__name__}", (AllotmentTrainerMixin, _base), {"verl_mode": _mode, "__doc__": _base.__doc__}
        )
    )
