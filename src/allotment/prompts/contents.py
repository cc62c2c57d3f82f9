"""A hash of whatever a row of a data set holds: texts, messages, numbers, images, arrays, tensors."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from allotment.errors import InvalidInputError
from allotment.types import PromptId


def content_hash(value: object) -> str:
    """32 hexadecimal digits, the same for equal contents in every process and run.

    Tables with the same entries in another order are equal; so are bytes, images (of PIL), arrays and tensors with the
    same numbers.

    Raises:
        InvalidInputError: it holds something that says nothing of its content.
    """
    text = _JSON.encode(value)
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).hexdigest()


def _plain(value: Any) -> object:
    """What JSON can say of a value that it does not know."""
    if isinstance(value, bytes | bytearray | memoryview):
        return {"bytes": hashlib.blake2b(bytes(value), digest_size=16).hexdigest()}
    if isinstance(value, set | frozenset):
        return {"set": sorted(map(repr, value))}
    if hasattr(value, "detach"):  # a tensor
        value = value.detach().cpu().numpy()
    if str(getattr(value, "dtype", "")) == "object":  # whose bytes are addresses
        return {"list": value.tolist()}
    if hasattr(value, "tobytes"):  # an array or an image
        about = [str(getattr(value, name, "")) for name in ("dtype", "shape", "mode", "size")]
        return {"about": about, "bytes": hashlib.blake2b(value.tobytes(), digest_size=16).hexdigest()}
    text = str(value)
    if f"at 0x{id(value):x}" in text:
        raise InvalidInputError(
            "a prompt cannot be told apart by what it holds",
            got=text,
            allowed="texts, numbers, lists, tables, images, arrays",
            fix="name the column that tells prompts apart",
        )
    return {type(value).__name__: text}


_JSON = json.JSONEncoder(sort_keys=True, default=_plain)


def named(value: Any, field: str, setting: str) -> PromptId | None:
    """The name that a row of a data set gives its prompt: None for nothing, an empty text, or pandas' NaN; 7.0 is 7.

    Args:
        value: the name.
        field: where it stands in the row, for the error.
        setting: which names another place.

    Raises:
        InvalidInputError: it is neither a whole number nor a text.
    """
    value = value.item() if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 else value
    if value is None or value == "" or (isinstance(value, float) and value != value):
        return None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, int | str) and not isinstance(value, bool):
        return value
    raise InvalidInputError(
        f"{field} does not name a prompt",
        got=repr(value),
        allowed="a whole number or a text; nothing, for a hash of what the row holds in its place",
        fix=f"mend {field}, or set {setting} to another key",
    )
