"""verl's rollouts: ``trainer.rollout_data_dir`` is filled with a ``STEP.jsonl`` a step.

A row a rollout, with ``input``, ``output``, ``gts``, ``score``, ``step`` and what the reward function adds.
"""

from __future__ import annotations

from allotment.audit.formats.base import FirstRows, LogFormat
from allotment.audit.formats.columns import Columns, completed
from allotment.audit.formats.rollouts import read_rollouts

USUAL = Columns(prompt="input", step="step", reward="score", completion="output")


def _recognises(first: FirstRows) -> bool:
    used = first.columns.over(USUAL)
    has_step = first.has(used.step) or first.path.stem.isdecimal()
    return has_step and first.has(used.prompt, used.reward, used.completion)


FORMAT = LogFormat(
    "input, output, score, step",
    recognises=_recognises,
    columns=lambda first: completed(first.columns.over(USUAL), first.rows[0]),
    read=lambda source, success_above: read_rollouts(source, success_above),
)
