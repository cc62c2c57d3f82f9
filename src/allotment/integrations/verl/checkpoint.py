"""verl's checkpoint callback: the planner's state in every ``global_step_N``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from verl.trainer.ppo.checkpoint_callback import CheckpointCallback

from allotment.integrations.verl.session import current_session


class AllotmentCheckpoint(CheckpointCallback):
    """Named by ``trainer.checkpoint_callback_class``; loading is the manager's, when it is made.

    The trainer hook saves by itself and leaves the callback free for others.
    """

    def on_save(
        self, trainer: Any, global_step: int, checkpoint_dir: str, async_save: bool = False, **kwargs: Any
    ) -> None:
        """Write ``planner.safetensors`` into verl's checkpoint."""
        current_session().save(Path(checkpoint_dir))
