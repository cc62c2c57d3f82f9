"""What is saved of the recursion behind the hierarchical predictor."""

from __future__ import annotations

from itertools import accumulate

import numpy as np

from allotment.checks import check_setting
from allotment.errors import StateError
from allotment.prediction.hierarchy import PRECISION, STEP, Hierarchy
from allotment.prompts.ids import PromptTable
from allotment.state import State, array_from_state, from_state
from allotment.types import FloatArray

KEYS = ("step", "ids", "records", "evidence", "precision", "shift")


def hierarchy_state(model: Hierarchy) -> State:
    """Entries of a state. Information about all bandwidths and evidence for all candidates, each as one vector."""
    information = model.information.values()
    return {
        "step": model.step,
        **model.records.state("records"),
        "evidence": np.concatenate([c.evidence for c in model.candidates()]),
        "precision": np.concatenate([i.precision.ravel() for i in information]),
        "shift": np.concatenate([i.shift for i in information]),
    }


def restore(model: Hierarchy, state: State) -> None:
    """Take over the entries of a state of the same settings and rank; StateError where they do not fit."""
    expected, step = hierarchy_state(model), state["step"]
    from_state(lambda: check_setting("step", step, type(step) is int and step >= 0, "a whole number >= 0"))
    records = PromptTable.from_state(state, "records", 4)
    precision_V, step_V = records.rows[:, PRECISION], records.rows[:, STEP]
    good = (precision_V > 0).all() and (step_V >= 0).all() and (step_V < max(step, 1)).all()
    from_state(lambda: check_setting("records", "records", bool(good), "positive precisions, visits in the past"))
    vectors = {key: array_from_state(state, key, expected[key].shape) for key in ("evidence", "precision", "shift")}
    good = (vectors["evidence"] <= 0).all()  # relative to the best of its kind
    from_state(lambda: check_setting("evidence", "evidence", bool(good), "logarithms of at most 0"))
    model.step, model.records = step, records
    candidates, known = model.candidates(), list(model.information.values())
    parts = _split(vectors["evidence"], [len(each.values) for each in candidates])
    for each, part in zip(candidates, parts, strict=True):
        each.settle(part)
    sizes = [len(information.shift) for information in known]
    shifts, squares = _split(vectors["shift"], sizes), _split(vectors["precision"], [size**2 for size in sizes])
    for information, shift_F, square in zip(known, shifts, squares, strict=True):
        information.shift, information.precision = shift_F, square.reshape(len(shift_F), -1)
    model.posteriors.clear()
    from_state(lambda: [model.posterior(j) for j in range(len(model.members))])  # fails if one has no inverse


def _split(vector: FloatArray, sizes: list[int]) -> list[FloatArray]:
    return [part.copy() for part in np.split(vector, list(accumulate(sizes))[:-1])]


def check_embeddings_fit(
    dimension: int, learnt: int, scale_F: FloatArray, learnt_scale_F: FloatArray, steps: int
) -> None:
    """Raise :class:`StateError` unless the embeddings registered can go on with a state of ``steps`` steps.

    ``dimension``, ``scale_F``: of those registered. ``learnt``, ``learnt_scale_F``: of the state; 0 where it has none.
    """
    if steps and learnt != dimension:
        raise StateError(
            "the state was learnt with other embeddings than those registered",
            got=f"embeddings of dimension {dimension}, a state of {learnt or 'none'}",
            allowed="the embeddings, with features if any, that were registered when the state was saved",
            fix="register those, or none where the state has none",
        )
    if not np.array_equal(learnt_scale_F, scale_F):
        raise StateError(
            "the registered features are scaled differently from those of the state",
            got=f"factors {scale_F.tolist()}",
            allowed=f"{learnt_scale_F.tolist()}",
            fix="register the same prompts first as when the state was saved, or load before registering",
        )
