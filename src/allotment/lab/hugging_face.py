"""The lab's task and a policy like the lab's as stock Hugging Face parts, for trainers that take nothing else.

No stock architecture counts positions from the answer token, so the model is a Llama of the lab policy's size: rotary
positions are relative, left padding does not change them. The tokenizer gives the lab's token numbers, and the warm
start is the lab's. ``python -m allotment.lab.hugging_face DIR`` re-makes the folder, in about five minutes on one core.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from allotment.errors import needs_extra
from allotment.lab.generation import Lab
from allotment.lab.regime import REGIMES
from allotment.lab.tokenizer import ANSWER, END, PAD, Tokenizer
from allotment.lab.warm_start import Stage, new_lab, train_stage
from allotment.tasks.mixture import Problem, load_mixture

with needs_extra("trl"):
    from tokenizers import Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as FastTokenizer
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SCRATCHPAD = REGIMES["scratchpad"]
STAGES = (Stage(REGIMES["short"], 5000, 4e-3), Stage(SCRATCHPAD, 2500, 2e-3))


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


def fast_tokenizer(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """The lab's tokenizer as Hugging Face's: the same token numbers, padding on the left, the end token as ``eos``.

    A text with a character outside the vocabulary is refused, as by the lab's.
    """
    fast = FastTokenizer(models.WordLevel({token: number for number, token in enumerate(tokenizer.vocabulary)}))
    parts = Regex(tokenizer._pattern.pattern.removesuffix(".") + r"[\s\S]")
    fast.pre_tokenizer = pre_tokenizers.Split(parts, "isolated")
    fast.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=fast,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[ANSWER],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def new_model(vocabulary: int, seed: int = 0) -> LlamaForCausalLM:
    """An untrained Llama of the size of the lab's policy."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.07,
        pad_token_id=Tokenizer.pad,
        bos_token_id=None,
        eos_token_id=Tokenizer.end,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=True, top_k=0, pad_token_id=Tokenizer.pad, eos_token_id=Tokenizer.end
    )
    return model


@dataclass(frozen=True)
class _WarmStart:
    """What :func:`train_stage` uses of a lab, with a Hugging Face model for its policy."""

    policy: LlamaForCausalLM
    tokenizer: Tokenizer
    fast: PreTrainedTokenizerFast

    def encode(self, problems: Sequence[Problem]) -> Any:
        return self.fast([p.question + ANSWER for p in problems], return_tensors="pt", padding=True)

    def completion_logits(self, prompts: Any, tokens_NT: Tensor) -> Tensor:
        """[N, T, vocabulary] logits from which each completion token was drawn."""
        made_NT = tokens_NT[:, :-1]
        tokens = torch.cat([prompts.input_ids, made_NT], dim=1)
        mask = torch.cat([prompts.attention_mask, torch.ones_like(made_NT)], dim=1)
        out = self.policy(tokens, attention_mask=mask, use_cache=False, logits_to_keep=tokens_NT.shape[1])
        return cast(Tensor, out.logits)


def main(folder: Path) -> None:
    """Train all stages and write the folder."""
    torch.set_num_threads(1)
    problems = load_mixture().warm_start
    tokenizer = new_lab(problems, SCRATCHPAD).tokenizer
    start = _WarmStart(new_model(len(tokenizer)), tokenizer, fast_tokenizer(tokenizer))
    for stage in STAGES:
        loss = train_stage(cast(Lab, start), problems, stage)
        print(f"{stage.regime.name}: loss {loss:.3f}")
    start.policy.save_pretrained(folder)
    start.fast.save_pretrained(folder)
    pool, held_out = (success_rate(start.policy, start.fast, rows(split)) for split in ("pool", "held_out"))
    print(f"{start.policy.num_parameters()} parameters, success pool {pool:.3f}, held out {held_out:.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
