"""The session of a run: started when verl makes the agent-loop manager, found by whoever else is called."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from allotment.errors import ConfigError
from allotment.integrations.verl.config import (
    planner_of,
    priced_estimator,
    read,
    resume_folder,
    run_folder,
    selector_of,
)
from allotment.integrations.verl.session import PATIENCE, Session

_current: Session | None = None


def check_start(config: DictConfig) -> None:
    """Refuse what cannot be carried out before a model is loaded: ConfigError, as :func:`start_session` has it."""
    settings, batch = read(config)
    selector_of(config, settings, batch, planner_of(config, settings, batch))


def start_session(config: Any) -> Session:
    """A new session for this process, from verl's configuration; restored where verl resumes.

    Raises:
        ConfigError: verl's configuration rules out counts of their own for each prompt.
        StateError: the planner's state in the checkpoint cannot be used.
    """
    global _current
    settings, batch = read(config)
    threshold = config.trainer.v1.sampler.get("max_off_policy_threshold")
    planner = planner_of(config, settings, batch)
    session = Session(
        planner,
        settings,
        batch,
        run_folder(config),
        selector=selector_of(config, settings, batch, planner),
        estimator=priced_estimator(config),
        patience=int(threshold or PATIENCE),
    )
    if (folder := resume_folder(config)) is not None:
        session.load(folder)
    _current = session
    return session


def current_session() -> Session:
    """The session of this process.

    Raises:
        ConfigError: there is none.
    """
    if _current is None:
        raise ConfigError(
            "no planner was started",
            got="an Allotment estimator, trainer or callback without Allotment's agent-loop manager",
            allowed="all of them together",
            fix="set actor_rollout_ref.rollout.agent.agent_loop_manager_class to "
            "allotment.integrations.verl.AllotmentAgentLoopManager",
        )
    return _current
