"""Who trains a configuration: the lab or TRL. Importing this loads neither."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from allotment.config import AnyTrainConfig, TRLTrainConfig
from allotment.errors import needs_extra


def trainer_of(config: AnyTrainConfig, path: Path) -> Any:
    """The trainer of a configuration, for a run in ``path``; ``run(directory, on_step)`` makes or continues the run.

    Raises:
        AllotmentError: the trainer refuses the configuration, or its packages are missing.
    """
    if isinstance(config, TRLTrainConfig):
        with needs_extra("trl"):
            from allotment.integrations.trl.command.run import TRLRun
        return TRLRun(config, path)
    with needs_extra("train"):
        from allotment.lab.train import Trainer
    return Trainer(config)
