"""What can be counted in a prompt's text, beside its embedding, which knows topic rather than difficulty."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import takewhile

import numpy as np
import numpy.typing as npt

from allotment.errors import InvalidInputError
from allotment.prompts.embeddings import EmbeddedPrompts, VectorArray, as_numbers, check_vectors
from allotment.types import FloatArray, PromptId

PATTERNS = {
    "characters": r".",
    "words": r"\S+",
    "numbers": r"\d+",
    "dollars": r"\$",
    "backslashes": r"\\",
    "fractions": r"frac|/",
    "questions": r"\?",
    "relations": r"[=<>]",
    "brackets": r"[()\[\]{}]",
    "bars": r"\|",
    "all": r"\ball\b",
    "prove": r"\bprove\b|\bshow that\b",
    "find": r"\bfind\b|\bdetermine\b",
    "how many": r"\bhow many\b",
    "compute": r"\bvalue\b|\bcalculate\b|\bcompute\b|\bevaluate\b",
}
"""Regular expressions whose occurrences are counted, case ignored."""
_COMPILED = [re.compile(pattern, re.IGNORECASE | re.DOTALL) for pattern in PATTERNS.values()]


def distinct_parts(texts: Sequence[str]) -> list[str]:
    """``texts`` without what all of them begin and end with, such as a chat template or instructions.

    Cut at white space only, so that no word is halved. Texts that are all equal, or fewer than two, stay as they are.
    """
    if len(set(texts)) < 2:
        return list(texts)
    start = _shared_words(texts)
    rest = [text[start:] for text in texts]
    end = _shared_words([text[::-1] for text in rest])
    return [text[: len(text) - end] for text in rest]


def _shared_words(texts: Sequence[str]) -> int:
    """Length of the common beginning, up to its last white space."""
    first, last = min(texts), max(texts)  # what these two share, all between them share
    both = takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return max((i + 1 for i, (character, _) in enumerate(both) if character.isspace()), default=0)


def text_features(texts: Sequence[str]) -> FloatArray:
    """``log(1 + count)`` of each of :data:`PATTERNS`, and of the digits of the longest number; [M, 16].

    Args:
        texts: [M] prompts without what all of them share, see :func:`distinct_parts`.

    Raises:
        InvalidInputError: ``texts`` is not a sequence of strings.
    """
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise InvalidInputError(
            "texts are not a list of strings", got=type(texts).__name__, allowed="list of str", fix="[text]"
        )
    longest = [max(map(len, re.findall(r"\d+", text)), default=0) for text in texts]
    rows = [[*(len(p.findall(text)) for p in _COMPILED), digits] for text, digits in zip(texts, longest, strict=True)]
    return np.log1p(np.array(rows, dtype=np.float64).reshape(len(rows), len(PATTERNS) + 1))


def scale_beside(features_MF: npt.NDArray[np.floating], embeddings_MD: npt.NDArray[np.floating]) -> FloatArray:
    """[F] factors that make every feature count the same, and all of them together as much as the embeddings.

    Prompts then lie, on average, as far from each other by their features as by their embeddings. Features that do
    not vary get 1.
    """
    distance = float(np.sqrt(embeddings_MD.var(axis=0, dtype=np.float64).sum()))
    spread_F = features_MF.std(axis=0, dtype=np.float64)
    varies_F = spread_F > 0
    unit = (distance if distance > 0 else 1.0) / np.sqrt(features_MF.shape[1])
    return np.where(varies_F, unit / np.where(varies_F, spread_F, 1.0), 1.0)


def with_features(
    ids: tuple[PromptId, ...],
    embeddings: npt.ArrayLike,
    features: npt.ArrayLike | None,
    scale_F: FloatArray,
    registered: EmbeddedPrompts,
) -> tuple[VectorArray, FloatArray]:
    """Embeddings [Q, D] with scaled features [Q, F] beside them, [Q, D + F], and the factors [F] of the features.

    ``scale_F``, ``registered``: factors [F] and prompts registered before; empty where there are none with features.
    InvalidInputError: wrong shape or dimension, not finite, or features for some registrations only.
    """
    embeddings_QD = as_numbers(embeddings, np.float32)
    features_QF = as_numbers([] if features is None else features, np.float32)
    check_vectors(ids, embeddings_QD, 0)
    known = scale_F.size or (0 if len(registered) else features_QF.shape[-1])
    if features_QF.ndim != 2 or features_QF.shape != (len(embeddings_QD), known):
        raise InvalidInputError(
            "features do not fit",
            got=f"shape {features_QF.shape} beside embeddings {embeddings_QD.shape}",
            allowed=f"({len(embeddings_QD)}, {known or 'F'}), or none at all as at the first registration",
            fix="pass one row of features per embedding, at every registration or at none",
        )
    check_vectors(ids, np.hstack([embeddings_QD, features_QF]), registered.dimension)
    scale_F = scale_F if scale_F.size else scale_beside(features_QF, embeddings_QD)
    return np.hstack([embeddings_QD, features_QF * scale_F]), scale_F
