"""Tokens of the lab: template phrases of the prompts are one token each, everything else is characters.

The prompt text stays as reasoning-gym words it; a phrase such as "Solve for " costs one token, so a prompt is about ten
tokens long. Answers are always characters.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import takewhile

import torch
from torch import Tensor

from allotment.errors import InvalidInputError

PAD, ANSWER, END = "<pad>", "<ans>", "<end>"
MINIMUM_SHARE = 0.02
_VARIABLE_PARTS = re.compile(r"(\d|: |\b[a-z]\b)")


class Tokenizer:
    """A fixed vocabulary: three special tokens, single characters, template phrases.

    Args:
        vocabulary: every token, in the order of its number; begins with the special tokens.
    """

    pad, answer, end = 0, 1, 2

    def __init__(self, vocabulary: Sequence[str]) -> None:
        self.vocabulary = tuple(vocabulary)

    @classmethod
    def train(cls, prompts: Iterable[str], other_characters: str = "") -> Tokenizer:
        """Phrases that stand in at least 2 % of ``prompts`` become tokens; all characters seen are tokens."""
        prompts = list(prompts)
        counts: Counter[str] = Counter()
        for prompt in prompts:
            counts.update({part for part in _VARIABLE_PARTS.split(prompt) if len(part) > 1})
        phrases = sorted(part for part, count in counts.items() if count >= MINIMUM_SHARE * len(prompts))
        characters = sorted(set("".join(prompts)) | set(other_characters))
        return cls([PAD, ANSWER, END, *characters, *phrases])

    def __len__(self) -> int:
        return len(self.vocabulary)

    def encode_prompt(self, prompt: str) -> list[int]:
        """Token numbers of a prompt; longest phrases first. Raises InvalidInputError: a character is not in the
        vocabulary.
        """
        return self._lookup(self._pattern.findall(prompt), prompt)

    def encode_answer(self, text: str) -> list[int]:
        """Token numbers of a completion, one per character, with the end token. Raises InvalidInputError: a
        character is not in the vocabulary.
        """
        return [*self._lookup(text, text), self.end]

    def padded(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """[N, T] rows of token numbers, padded on the right."""
        length = max(map(len, rows))
        return torch.tensor([[*row, *[self.pad] * (length - len(row))] for row in rows])

    def decode(self, tokens: Iterable[int]) -> str:
        """The text up to, without, the first end token; special tokens before it show by name."""
        return "".join(self._until_end(tokens))

    def _until_end(self, tokens: Iterable[int]) -> Iterator[str]:
        return (self.vocabulary[token] for token in takewhile(lambda token: token != self.end, tokens))

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {token: number for number, token in enumerate(self.vocabulary)}

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        phrases = sorted((t for t in self.vocabulary[3:] if len(t) > 1), key=len, reverse=True)
        return re.compile("|".join([*map(re.escape, phrases), "."]), re.DOTALL)

    def _lookup(self, parts: Iterable[str], text: str) -> list[int]:
        try:
            return [self._numbers[part] for part in parts]
        except KeyError as error:
            wrong, got = "a text holds a character outside the vocabulary", f"{error.args[0]!r} in {text!r}"
            fix = "train a new tokenizer and a new checkpoint on the texts to be used"
            allowed = "".join(t for t in self.vocabulary if len(t) == 1)
            raise InvalidInputError(wrong, got=got, allowed=allowed, fix=fix) from None
