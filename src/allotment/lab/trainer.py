"""The lab's declaration as a trainer of ``allotment train``. Importing this loads no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from allotment.errors import needs_extra
from allotment.lab.config import CAPABILITY, TrainConfig
from allotment.trainers import TrainerEntry


def _make(config: TrainConfig, path: Path) -> Any:
    with needs_extra("train"):
        from allotment.lab.train import Trainer
    return Trainer(config)


def _texts(config: TrainConfig) -> dict[str, str]:
    with needs_extra("train"):
        from allotment.tasks.countdown import questions_of
    return questions_of(config.regime, config.pool)


TRAINER = TrainerEntry(
    TrainConfig,
    _make,
    CAPABILITY,
    "the lab's language model of 0.1 M parameters",
    _texts,
    measured="computed exactly, on every prompt of the sets that are measured",
    has_oracle=True,
)
