"""The lab's task and a policy like the lab's as stock Hugging Face parts, for trainers that take nothing else.

No stock architecture counts positions from the answer token, so the model is a Llama of the lab policy's size: rotary
positions are relative, left padding does not change them. The tokenizer gives the lab's token numbers, and the warm
start is the lab's; benchmarks/shipped/hugging_face.py made the folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from allotment.lab.regime import REGIMES
from allotment.lab.tokenizer import ANSWER
from allotment.tasks.mixture import Problem, load_mixture

SCRATCHPAD = REGIMES["scratchpad"]


def model_folder() -> Path:
    """Where the warm-started model and its tokenizer lie inside the package."""
    return Path(__file__).parent / "data" / "hugging_face"


def rows(split: Literal["pool", "held_out"]) -> list[dict[str, str]]:
    """A split as rows of a data set: ``prompt``, which ends in the answer token, ``answer`` and ``prompt_id``."""
    problems: Sequence[Problem] = getattr(load_mixture(), split)
    return [{"prompt": p.question + ANSWER, "answer": p.answer, "prompt_id": p.id} for p in problems]


def scratchpad_reward(completions: Sequence[str], answer: Sequence[str], **_: object) -> list[float]:
    """1.0 for a completion in the scratchpad form with exactly the right answer, else 0.0; a reward function of TRL.

    Args:
        completions: texts without special tokens, of up to ``SCRATCHPAD.max_tokens`` tokens. In a text without the
            special tokens, one that was cut off looks like one that has ended, so generate no fewer: with that many,
            what was cut off is too long for any right answer.
        answer: the right answer of each.
    """
    return [float(SCRATCHPAD.answer_of(text) == right) for text, right in zip(completions, answer, strict=True)]


@torch.no_grad()
def success_rate(
    model: Any, tokenizer: Any, rows: Sequence[dict[str, str]], *, rollouts: int = 4, batch: int = 512, seed: int = 0
) -> float:
    """Mean reward of ``rollouts`` completions of every row, sampled at temperature 1."""
    many = [row for row in rows for _ in range(rollouts)]
    rewards: list[float] = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for first in range(0, len(many), batch):
            part = many[first : first + batch]
            prompts = tokenizer([row["prompt"] for row in part], return_tensors="pt", padding=True)
            tokens_NT = model.generate(
                **prompts, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=SCRATCHPAD.max_tokens
            )
            texts = tokenizer.batch_decode(tokens_NT[:, prompts.input_ids.shape[1] :], skip_special_tokens=True)
            rewards += scratchpad_reward(texts, [row["answer"] for row in part])
    return sum(rewards) / len(rewards)
