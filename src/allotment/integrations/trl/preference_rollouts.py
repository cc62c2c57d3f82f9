"""Completions of a model, as tokens and as texts, and what reward functions in TRL's form say of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig

from allotment.errors import ConfigError, InvalidInputError
from allotment.types import FloatArray

RewardFunction = Callable[..., Sequence[float | None]]
Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Rollouts:
    """N completions; the tokens are those that were generated, never encoded anew from the texts."""

    prompt_ids: list[list[int]]
    """[N] tokens of the prompts."""
    completion_ids: list[list[int]]
    """[N] tokens of the completions, with the end token where there is one."""
    completions: list[Any]
    """[N] texts, or messages where the prompt is a list of messages."""

    def pairs(self, chosen: Sequence[int], rejected: Sequence[int]) -> list[dict[str, list[int]]]:
        """Pairs of these rows as the collator of TRL's ``DPOTrainer`` takes them."""
        names, ids = ("prompt_ids", "chosen_ids", "rejected_ids"), self.completion_ids
        rows = zip(chosen, rejected, strict=True)
        return [dict(zip(names, (self.prompt_ids[c], ids[c], ids[r]), strict=True)) for c, r in rows]


@torch.no_grad()
def generate(
    model: Any, tokenizer: Any, rows: Sequence[Row], *, max_tokens: int, temperature: float, batch: int
) -> Rollouts:
    """A sampled completion of each row's ``prompt``, ``batch`` rows at a time; uses the global random numbers."""
    prompts = {_key(row["prompt"]): row["prompt"] for row in rows}
    encoded = {key: _encode(tokenizer, prompt) for key, prompt in prompts.items()}
    prompt_ids = [encoded[_key(row["prompt"])] for row in rows]
    own = model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
    settings = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=True,
        temperature=temperature,
        top_k=0,
        top_p=1.0,
        max_new_tokens=max_tokens,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=sorted(ends),
    )
    was_training = model.training
    model.eval()
    completion_ids: list[list[int]] = []
    for first in range(0, len(rows), batch):
        part = [torch.tensor(ids) for ids in prompt_ids[first : first + batch]]
        tokens = pad_sequence(part, True, tokenizer.pad_token_id, padding_side="left").to(model.device)
        mask = pad_sequence([torch.ones_like(ids) for ids in part], True, 0, padding_side="left").to(model.device)
        made: Tensor = model.generate(input_ids=tokens, attention_mask=mask, generation_config=settings)
        completion_ids += [_until_end(ids, ends) for ids in made[:, tokens.shape[1] :].tolist()]
    model.train(was_training)
    texts = tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
    completions = [
        text if isinstance(row["prompt"], str) else [{"role": "assistant", "content": text}]
        for row, text in zip(rows, texts, strict=True)
    ]
    return Rollouts(prompt_ids, completion_ids, completions)


def rewards_of(functions: Sequence[RewardFunction], rows: Sequence[Row], rollouts: Rollouts) -> FloatArray:
    """[N] the sum of what reward functions in TRL's form say; NaN where all of them say None, which is no reward.

    Raises:
        InvalidInputError: a function gives another number of values, or one that is neither finite nor None.
    """
    columns = {name: [row[name] for row in rows] for name in rows[0] if name not in ("prompt", "completion")}
    prompts = [row["prompt"] for row in rows]
    values_FN = []
    for function in functions:
        given = function(
            prompts=prompts, completions=rollouts.completions, completion_ids=rollouts.completion_ids, **columns
        )
        values = [None if value is None else float(value) for value in given]
        wrong = [value for value in values if value is not None and not np.isfinite(value)]
        if len(values) != len(rows) or wrong:
            raise InvalidInputError(
                f"the reward function {getattr(function, '__name__', function)!r} gives what is no reward",
                got=f"{len(values)} values" + (f", among them {wrong[0]}" if wrong else ""),
                allowed=f"{len(rows)} values, a finite number or None for each completion",
                fix="return None for a completion that cannot be judged",
            )
        values_FN.append([np.nan if value is None else value for value in values])
    rewards_FN = np.array(values_FN, dtype=np.float64)
    return np.where(np.isnan(rewards_FN).all(0), np.nan, np.nansum(rewards_FN, axis=0))


def checked_functions(given: Any) -> list[RewardFunction]:
    """The reward functions as a list.

    Raises:
        ConfigError: one is no function; reward models are not supported here.
    """
    functions = list(given) if isinstance(given, list | tuple) else [given]
    if not functions or not all(callable(f) and not isinstance(f, torch.nn.Module) for f in functions):
        allowed = "functions of prompts, completions and the columns of the data set, as for GRPOTrainer"
        raise ConfigError(
            "these are not reward functions", got=repr(given), allowed=allowed, fix="wrap a model in a function"
        )
    return functions


def _key(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else repr(prompt)


def _encode(tokenizer: Any, prompt: Any) -> list[int]:
    if isinstance(prompt, str):
        return list(tokenizer(prompt)["input_ids"])
    return list(tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"])


def _until_end(ids: list[int], ends: set[int]) -> list[int]:
    last = next((place for place, token in enumerate(ids) if token in ends), len(ids) - 1)
    return ids[: last + 1]
