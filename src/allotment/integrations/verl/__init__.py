"""verl on Ray: a number of rollouts for each prompt, through verl's own extension points.

Named in verl's configuration, by import path::

    actor_rollout_ref.rollout.agent.agent_loop_manager_class: allotment.integrations.verl.AllotmentAgentLoopManager
    trainer.checkpoint_callback_class: allotment.integrations.verl.AllotmentCheckpoint
    algorithm.adv_estimator: allotment_rloo           # or allotment_dr_grpo, allotment_grpo

or all of it by the name of the trainer, which verl finds through its entry points, with any of verl's advantage
estimators that works within groups::

    trainer.v1.trainer_mode: allotment_sync           # or allotment_colocate_async, allotment_separate_async

Needs ``pip install 'allotment[verl]'``; see docs/verl.md.
"""

import logging

from allotment.errors import needs_extra

with needs_extra("verl"):
    from allotment.integrations.verl.versions import check_parts, check_verl

    _warning = check_verl()
    check_parts()
    from allotment.integrations.verl import estimators as _estimators  # noqa: F401 (registers them)
    from allotment.integrations.verl.checkpoint import AllotmentCheckpoint
    from allotment.integrations.verl.config import AllotmentSettings
    from allotment.integrations.verl.manager import AllotmentAgentLoopManager
    from allotment.integrations.verl.running import current_session
    from allotment.integrations.verl.session import Session
    from allotment.integrations.verl.trainers import AllotmentTrainerMixin

if _warning is not None:
    logging.getLogger("allotment").warning(_warning)

__all__ = [
    "AllotmentAgentLoopManager",
    "AllotmentCheckpoint",
    "AllotmentSettings",
    "AllotmentTrainerMixin",
    "Session",
    "current_session",
]
