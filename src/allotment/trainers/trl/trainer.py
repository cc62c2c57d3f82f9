"""TRL's declaration as a trainer of ``allotment train``. Importing this loads no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from allotment.errors import needs_extra
from allotment.integrations.capabilities import TRL
from allotment.trainers import TrainerEntry
from allotment.trainers.trl.config import TRLTrainConfig


def _make(config: TRLTrainConfig, path: Path) -> Any:
    with needs_extra("trl"):
        from allotment.trainers.trl.run import TRLRun
    return TRLRun(config, path)


def _texts(config: TRLTrainConfig) -> dict[str, str]:
    from allotment.tasks.datasets import load_rows

    rows = load_rows(
        config.dataset,
        size=config.dataset_size,
        options=config.dataset_options,
        prompt_column=config.prompt_column,
        answer_column=config.answer_column,
        id_column=config.prompt_id_column,
        needs_answer=bool(config.verifier) or not config.reward,
    )
    return {str(row["prompt_id"]): _plain(row["prompt"]) for row in rows}


def _plain(prompt: Any) -> str:
    """A prompt's text; that of a conversation is its messages' contents."""
    return prompt if isinstance(prompt, str) else "\n".join(str(message.get("content", "")) for message in prompt)


TRAINER = TrainerEntry(
    TRLTrainConfig,
    _make,
    TRL,
    "a Hugging Face model with TRL",
    _texts,
    measured="estimated from one sampled completion a prompt",
)
