"""The shipped embeddings of the lab's prompts, in half precision: ``python -m shipped.embeddings``."""

from __future__ import annotations

import numpy as np

from allotment.lab.embeddings import KIND, SHIPPED, fingerprint
from allotment.prediction import embed
from allotment.state import save_state
from allotment.tasks.countdown import load_countdown
from allotment.tasks.mixture import load_mixture

if __name__ == "__main__":
    questions = [problem.question for problem in (*load_mixture().pool, *load_countdown().pool)]
    half = embed(questions, progress=True).astype(np.float16)
    keys = np.array([fingerprint(question) for question in questions])
    save_state(SHIPPED, {"questions": keys, "embeddings": half}, kind=KIND)
