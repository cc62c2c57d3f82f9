"""Makes the Hugging Face folder that the lab ships: ``cd benchmarks && python -m shipped.hugging_face DIR``.

About five minutes on one core.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from allotment.lab.generation import Lab
from allotment.lab.hugging_face import SCRATCHPAD, rows, success_rate
from allotment.lab.regime import REGIMES
from allotment.lab.tokenizer import ANSWER, END, PAD, Tokenizer
from allotment.tasks.mixture import Problem, load_mixture
from shipped.warm_start import Stage, new_lab, train_stage

STAGES = (Stage(REGIMES["short"], 5000, 4e-3), Stage(SCRATCHPAD, 2500, 2e-3))


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
