"""What each prompt's name stood for when it was first seen: two prompts of one name are never one in silence."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from allotment.errors import InvalidInputError
from allotment.integrations.verl.prompts import prompt_texts
from allotment.state import State, decode_json, encode_json

SHOWN = 200
"""Characters of a prompt in an error."""
KEPT = 50_000
"""Prompts of which something is kept to be shown."""


class PromptBook:
    """A hash of the words of each prompt, by name; of the first ones their ends too."""

    def __init__(self) -> None:
        self._hashes: dict[str, int] = {}
        self._shown: dict[str, str] = {}

    def check(self, keys: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
        """Take down what is new.

        Raises:
            InvalidInputError: a name stood for another prompt before; nothing is taken down then.
        """
        own, shown = dict[str, int](), dict[str, str]()
        for key, row in zip(keys, rows, strict=True):
            texts = prompt_texts(row)
            value = _hash(texts)
            if own.setdefault(key, self._hashes.get(key, value)) != value:
                raise _collision(key, shown.get(key, self._shown.get(key)), _short(texts))
            shown.setdefault(key, _short(texts))
        self._hashes |= own
        self._shown |= dict(list(shown.items())[: max(KEPT - len(self._shown), 0)])

    def state_dict(self) -> State:
        """Names and hashes."""
        hashes = np.array(list(self._hashes.values()), dtype=np.int64)
        return {"ids": encode_json(list(self._hashes)), "hashes": hashes}

    def load_state_dict(self, state: State) -> None:
        """Take over what :meth:`state_dict` gave."""
        hashes = np.asarray(state["hashes"]).tolist()
        self._hashes = dict(zip(decode_json(state["ids"]), hashes, strict=True))


def _short(texts: list[str]) -> str:
    """Both ends: prompts of one template differ in the last words, or in the answer."""
    whole = " / ".join(texts)
    return whole if len(whole) <= SHOWN else f"{whole[: SHOWN // 2]} ... {whole[-SHOWN // 2 :]}"


def _hash(texts: list[str]) -> int:
    digest = hashlib.blake2b("\0".join(texts).encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def _collision(key: str, first: str | None, second: str) -> InvalidInputError:
    before = repr(first) if first is not None else "a prompt of another wording, seen before"
    return InvalidInputError(
        f"two different prompts have the name {key!r}, and would share what is believed and their baselines",
        got=f"{before}, and {second!r}",
        allowed="one prompt for each data_source and extra_info.index",
        fix="give each file a data_source of its own, number the rows through, or set allotment.prompt_id to a key "
        "that tells them apart; allotment.check_prompts=false where one prompt is worded anew at each visit",
    )
