"""The predictor that the library uses where none is chosen."""

from __future__ import annotations

import numpy.typing as npt

from allotment.prediction.base import Predictor
from allotment.prediction.hierarchical import HierarchicalPredictor
from allotment.prompts.embeddings import Embeddings
from allotment.types import PromptIds


def default_predictor(
    embeddings: Embeddings | None = None, ids: PromptIds | None = None, features: npt.ArrayLike | None = None
) -> Predictor:
    """A new :class:`~allotment.prediction.HierarchicalPredictor`, nothing observed yet.

    Args:
        embeddings: [M, D] of the prompts ``ids``, where there are any; without, prompts need no registration and an
            unseen one is believed to be like the average.
        ids: [M] prompt ids of the rows of ``embeddings``.
        features: [M, F] further numbers beside an array of embeddings.
    """
    return HierarchicalPredictor(embeddings, ids=ids, features=features)
