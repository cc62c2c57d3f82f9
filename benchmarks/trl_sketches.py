"""What a score sketch costs beside the work TRL does anyway: generation, a forward and backward pass for training.

``python benchmarks/trl_sketches.py`` (two minutes, one thread): a random Llama of about 9 M parameters, 32 rows of 32
prompt and 64 completion tokens. Prints markdown.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from allotment.integrations.trl.sketches import ScoreSketch


def main() -> None:
    """Read the command line, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, default=8000)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = random_llama(arguments.vocabulary)
    works = works_of(model, arguments.rows, arguments.batch_size, arguments.vocabulary)
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(arguments.repeats + 1):  # taken in turns, so that a busy machine slows all alike
        for name, work in works.items():
            started = time.perf_counter()
            work()
            if repeat:
                seconds[name].append(time.perf_counter() - started)
    medians = {name: float(np.median(took)) for name, took in seconds.items()}
    step = medians["generation"] + medians["training pass"]
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"{parameters:.1f} M parameters, {arguments.rows} rows, {arguments.batch_size} at once.\n")
    print("| work | s | share of generation and training pass |\n|---|--:|--:|")
    for name, median in medians.items():
        print(f"| {name} | {median:.2f} | {median / step:.1%} |")


def random_llama(vocabulary: int) -> LlamaForCausalLM:
    """Six layers of width 256, in training mode."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).train()


def works_of(
    model: LlamaForCausalLM, rows: int, batch_size: int, vocabulary: int, prompt: int = 32, completion: int = 64
) -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    prompts, prompt_mask = torch.randint(1, vocabulary, (rows, prompt)), torch.ones(rows, prompt, dtype=torch.long)
    tokens, mask = torch.randint(1, vocabulary, (rows, completion)), torch.ones(rows, completion, dtype=torch.long)
    ids, attended = torch.cat([prompts, tokens], 1), torch.cat([prompt_mask, mask], 1)

    def generation() -> None:
        model.eval()
        model.generate(prompts, attention_mask=prompt_mask, do_sample=True, max_new_tokens=completion)
        model.train()

    def log_p(part: slice) -> torch.Tensor:
        output = model(
            input_ids=ids[part], attention_mask=attended[part], logits_to_keep=completion + 1, use_cache=False
        )
        return output.logits[:, :-1].log_softmax(-1).gather(2, tokens[part][:, :, None])

    def training() -> None:
        for first in range(0, rows, batch_size):
            log_p(slice(first, first + batch_size)).mean().backward()
        model.zero_grad()

    @torch.no_grad()
    def forward() -> None:
        for first in range(0, rows, batch_size):
            log_p(slice(first, first + batch_size))

    works: dict[str, Callable[[], object]] = {
        "generation": generation,
        "training pass": training,
        "forward pass alone": forward,
    }
    given = (prompts, prompt_mask, tokens, mask)
    for kind in ("last-layer", "last-block"):
        sketch = ScoreSketch(model, kind)
        works[f"{kind} sketch"] = lambda sketch=sketch: sketch(model, *given, temperature=1.0, batch_size=batch_size)
    return works


if __name__ == "__main__":
    main()
