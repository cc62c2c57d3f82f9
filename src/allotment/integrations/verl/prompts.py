"""Which prompt a row of verl's batch is. Its uid is new at every fetch; the planner needs a name that stays."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def prompt_key(row: Mapping[str, Any], name: str = "index") -> str:
    """``data_source/extra_info[name]``, else ``data_source/`` and a hash of the prompt.

    verl's own column ``index`` is not used: it is 0 for every row without one.
    """
    index = (row.get("extra_info") or {}).get(name)
    if index is None:
        prompt = json.dumps(row["raw_prompt"], sort_keys=True, default=str)
        index = hashlib.blake2b(prompt.encode(), digest_size=16).hexdigest()
    return f"{row.get('data_source', '')}/{index}"
