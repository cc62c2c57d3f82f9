"""The predictor that the library uses where none is chosen."""

from __future__ import annotations

from allotment.prediction.base import Predictor
from allotment.prediction.counts import DiscountedCounts
from allotment.prediction.storage import Embeddings
from allotment.types import PromptIds


def default_predictor(embeddings: Embeddings | None = None, ids: PromptIds | None = None) -> Predictor:
    """A new default predictor, nothing observed yet.

    Args:
        embeddings: [M, D] of the prompts ``ids``, where there are any. Counts alone are believed in at present.
        ids: [M] prompt ids of the rows of ``embeddings``.
    """
    return DiscountedCounts()
