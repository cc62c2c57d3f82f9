"""Embeddings of the lab's prompts, shipped so that a run need not compute them (5 to 20 s)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from allotment.prediction import embed
from allotment.state import load_state, save_state
from allotment.tasks.mixture import load_mixture
from allotment.types import FloatArray

KIND = "lab-embeddings"
SHIPPED = Path(__file__).parent / "data" / "embeddings.safetensors"


def prompt_embeddings(questions: Sequence[str]) -> FloatArray:
    """[M, 384] all-MiniLM-L6-v2 embeddings; read from the package if all are questions of the pool, else computed."""
    shipped = load_state(SHIPPED, kind=KIND)
    pool = {problem.question: row for row, problem in enumerate(load_mixture().pool)}
    if shipped["questions"] == _fingerprint(tuple(pool)) and pool.keys() >= set(questions):
        return np.asarray(shipped["embeddings"], dtype=np.float64)[[pool[question] for question in questions]]
    return embed(questions, progress=True).astype(np.float64)


def make(path: Path = SHIPPED) -> None:
    """Compute the pool's embeddings and write them, in half precision."""
    questions = [problem.question for problem in load_mixture().pool]
    half = embed(questions, progress=True).astype(np.float16)
    save_state(path, {"questions": _fingerprint(questions), "embeddings": half}, kind=KIND)


def _fingerprint(questions: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(questions).encode()).hexdigest()


if __name__ == "__main__":
    make()
