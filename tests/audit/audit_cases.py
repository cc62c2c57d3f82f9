"""Logs to audit: written as files, in both formats."""

import json

import numpy as np
from scipy.special import logit

from allotment.audit import Log
from allotment.prediction.posteriors import BetaPosterior
from allotment.types import Posterior


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def count_rows(successes, trials=8):
    return [
        {"prompt_id": i, "prompt": f"prompt {i}", "rollouts_per_visit": trials, "successes": [int(k) for k in row]}
        for i, row in enumerate(successes)
    ]


def as_run_rows(log, batches):
    """The same visits as a run would have written them."""
    return [
        {
            "prompt_id": log.ids[log.prompt[v]],
            "step": step,
            "round": 0,
            "n": int(log.trials[v]),
            "successes": int(log.successes[v]),
            "tokens": 99,
        }
        for step, batch in enumerate(batches, start=1)
        for v in batch
    ]


def simulated(rng, n_prompts=300, n_visits=12, trials=8):
    """A log and the success probabilities behind it, which never change."""
    p = rng.beta(0.5, 0.5, n_prompts)
    prompt = np.repeat(np.arange(n_prompts), n_visits)
    visit = np.tile(np.arange(1, n_visits + 1), n_prompts)
    return Log(tuple(range(n_prompts)), prompt, visit, rng.binomial(trials, p[prompt]), np.full(len(prompt), trials)), p


class Scripted:
    """Believes what it is told to, with certainty, and notes what it is asked and told."""

    def __init__(self, probabilities):
        self.probabilities = probabilities
        self.calls = []

    def predict(self, ids):
        self.calls.append(("predict", list(ids)))
        mean = logit([self.probabilities[i] for i in ids])
        return Posterior(mean, np.zeros_like(mean))

    def observe(self, ids, successes, trials):
        self.calls.append(("observe", list(ids), list(successes), list(trials)))

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


class Believed:
    """The same Beta belief about every visit, however it turns out."""

    def __init__(self, alpha, beta):
        self.alpha, self.beta = alpha, beta

    def predict(self, ids):
        return BetaPosterior.from_counts(np.full(len(ids), self.alpha), np.full(len(ids), self.beta))

    def observe(self, ids, successes, trials):
        pass
