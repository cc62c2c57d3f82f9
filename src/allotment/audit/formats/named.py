"""Any table with a row a rollout whose columns the user names."""

from __future__ import annotations

from allotment.audit.formats.base import LogFormat
from allotment.audit.formats.columns import completed
from allotment.audit.formats.rollouts import read_rollouts

FORMAT = LogFormat(
    "columns named with --prompt, --step, --reward",
    recognises=lambda first: first.all_named,
    columns=lambda first: completed(first.columns, first.rows[0]),
    read=lambda source, success_above: read_rollouts(source, success_above),
)
