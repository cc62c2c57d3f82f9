"""Converts the packaged SmolLM2 for real, loads it back, and asks it a question: what the test suite leaves out.

    python benchmarks/smollm2.py [DIR]

About 40 seconds and 540 MB in DIR (a temporary folder by default, removed afterwards).
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

from allotment.tasks.smollm2 import prepare_smollm2

QUESTION, EXPECTED = "What is the capital of France?", "Paris"


def check(folder: Path) -> None:
    """Convert into ``folder``, load it, and exit with a message where the answer is nonsense."""
    start = time.perf_counter()
    prepare_smollm2(folder, say=print)
    seconds = time.perf_counter() - start
    megabytes = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
    print(f"converted in {seconds:.0f} s, {megabytes:.0f} MB in {folder}")
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    tokens = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    generated = model.generate(**tokens, max_new_tokens=20, do_sample=False)
    text = tokenizer.decode(generated[0, tokens["input_ids"].shape[1] :], skip_special_tokens=True)
    print(f"{QUESTION} -> {text}")
    if EXPECTED not in text:
        sys.exit(f"the converted model does not say {EXPECTED}")


def main() -> None:
    """Into the folder named, else into a temporary one."""
    if sys.argv[1:]:
        check(Path(sys.argv[1]))
        return
    with TemporaryDirectory() as temporary:
        check(Path(temporary) / "smollm2")


if __name__ == "__main__":
    main()
