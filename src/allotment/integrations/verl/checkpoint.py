"""verl's checkpoint callback: the planner's state in every ``global_step_N``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from verl.trainer.ppo.checkpoint_callback import CheckpointCallback

from allotment.integrations.verl.running import check_start, current_session


class AllotmentCheckpoint(CheckpointCallback):
    """Named by ``trainer.checkpoint_callback_class``; loading is the manager's, when it is made.

    verl calls it after its own marker: a run that is killed between the two goes on without a record. The trainer hook
    saves by itself, before the marker, and leaves the callback free for others.

    Raises:
        ConfigError: verl's configuration rules out counts of their own for each prompt; no model is loaded yet.
    """

    def __init__(self, config: Any = None) -> None:
        if config is not None:
            check_start(config)
        super().__init__(config)

    def on_save(
        self, trainer: Any, global_step: int, checkpoint_dir: str, async_save: bool = False, **kwargs: Any
    ) -> None:
        """Write ``planner.safetensors`` into verl's checkpoint."""
        current_session().save(Path(checkpoint_dir))
