"""Which prompt a row of slime's data set is: the identity under which a planner remembers it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from allotment.errors import InvalidInputError
from allotment.prompts.contents import content_hash, named
from allotment.types import PromptId

SHOWN = ("prompt", "multimodal_inputs")
"""What of a sample a model is shown."""
KEPT = (*SHOWN, "label", "metadata")
"""What of a sample is of its row, and not of a rollout."""


class PromptIdentity:
    """Prompt ids of samples: what their metadata says, else a hash of all that their row holds.

    So rows are one prompt only if nothing tells them apart, and a prompt keeps its id in another order or selection.

    Args:
        key: of the metadata; None for hashes alone.
    """

    def __init__(self, key: str | None) -> None:
        self._key = key
        self._shown: dict[PromptId, tuple[str, str]] = {}

    def of(self, sample: Any) -> PromptId:
        """The id of a sample that has no response yet.

        Raises:
            InvalidInputError: its metadata's entry is no id, or names another prompt too; or there is none, and the row
                holds what cannot be told apart.
        """
        key = self._key
        name = None if key is None else named((sample.metadata or {}).get(key), f"the metadata's {key}", "prompt_id")
        if name is None:
            return content_hash([getattr(sample, name) for name in KEPT])
        shown = content_hash([getattr(sample, name) for name in SHOWN])
        known = self._shown.setdefault(name, (shown, str(sample.prompt)[:200]))
        if known[0] != shown:
            raise InvalidInputError(
                f"two different prompts have the same {self._key}",
                got=f"{name!r}: {known[1]!r} and {str(sample.prompt)[:200]!r}",
                allowed="an id of its own for each prompt",
                fix="number the prompts of all files together, or leave the setting prompt_id out",
            )
        return name

    def check(self, samples: Iterable[Any]) -> None:
        """Look at all samples of a data set, so that an id of two prompts is found at the start."""
        for sample in samples if self._key is not None else ():
            self.of(sample)
