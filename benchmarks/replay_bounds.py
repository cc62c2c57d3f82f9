"""How much more could any predictor have known? Two bounds for ``allotment audit`` on the log of a real run.

    python benchmarks/replay_bounds.py LOG.jsonl [--embeddings cache.npy] [--seed 0]

* "boosted": gradient-boosted trees that correct the default predictor's p and p (1 - p), given its belief, the last six
  rates, mean, least and greatest rate so far, the visit number, text features and the first ten principal components of
  the embeddings. Fitted on the *whole* runs of four fifths of the prompts, future included, and scored on the rest
  (five folds): what a supervised learner could make of the same information, with far more of it than a run has.
* "second visit in hindsight": each prompt's weight at visit 2 is the mean of the variance observed at visit 2 over all
  prompts with the same count at visit 1, itself included: no function of that count allocates better on this log.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.model_selection import GroupKFold

from allotment.audit import Figures, Log, Settings, read_log, replay
from allotment.audit.embeddings import prompt_embeddings
from allotment.audit.figures import unbiased_variance
from allotment.prediction import Predictor, default_predictor, text_features
from allotment.types import FloatArray, Posterior, PromptIds


@dataclass(frozen=True, eq=False)
class Told(Posterior):
    """A belief whose two expectations are given."""

    probability: FloatArray
    weight: FloatArray

    def success_probability(self) -> FloatArray:
        """[Q] as given."""
        return self.probability

    def expected_variance(self) -> FloatArray:
        """[Q] as given."""
        return self.weight


class Script:
    """A predictor that says what was written down for each visit, or writes down what another one says."""

    def __init__(self, log: Log, source: Predictor | None = None) -> None:
        self._source = source
        self._row = {prompt: row for row, prompt in enumerate(log.ids)}
        self._visit = np.full((len(log.ids), int(log.visit.max())), -1)
        self._visit[log.prompt, log.visit - 1] = np.arange(len(log.visit))
        self._done = np.zeros(len(log.ids), dtype=np.int64)
        self.probability, self.weight, self.mean, self.variance = (np.full(len(log.visit), 0.5) for _ in range(4))

    def predict(self, ids: PromptIds) -> Posterior:
        """What is written for the prompts' next visits."""
        rows = np.array([self._row[prompt] for prompt in ids])
        visits = self._visit[rows, self._done[rows]]
        if self._source is not None:
            belief = self._source.predict(ids)
            self.mean[visits], self.variance[visits] = belief.mean, belief.variance
            self.probability[visits], self.weight[visits] = belief.success_probability(), belief.expected_variance()
        return Told(self.mean[visits], self.variance[visits], self.probability[visits], self.weight[visits])

    def observe(self, ids: PromptIds, successes: Any, trials: Any) -> None:
        """Count the visits."""
        self._done[[self._row[prompt] for prompt in ids]] += 1
        if self._source is not None:
            self._source.observe(ids, successes, trials)


def history(log: Log) -> FloatArray:
    """[V, 10] last six rates (NaN before the first visit), mean, least, greatest rate so far, visit number."""
    table = np.full((len(log.ids), int(log.visit.max()) + 6), np.nan)
    table[log.prompt, log.visit + 5] = log.successes / log.trials
    rows = []
    for prompt, visit in zip(log.prompt, log.visit, strict=True):
        past = table[prompt, 6 : visit + 5]
        whole = [past.mean(), past.min(), past.max()] if len(past) else [np.nan] * 3
        rows.append([*table[prompt, visit - 1 : visit + 5][::-1], *whole, visit])
    return np.array(rows)


def boosted(log: Log, script: Script, x_MD: FloatArray) -> Script:
    """Corrections of ``script`` for visits from the second on, from out-of-fold trees."""
    about = np.hstack([text_features(log.texts or ()), PCA(10).fit_transform(x_MD)])[log.prompt]
    belief = np.column_stack([script.probability, script.weight, script.mean, script.variance])
    inputs = np.hstack([belief, history(log), about])
    observed = log.successes / log.trials, unbiased_variance(log.successes, log.trials)
    better, later = Script(log), np.flatnonzero(log.visit > 1)
    for target, base, out in zip(
        observed, (script.probability, script.weight), (better.probability, better.weight), strict=True
    ):
        for train, test in GroupKFold(5).split(later, groups=log.prompt[later]):
            trees = HistGradientBoostingRegressor(
                max_iter=150,
                learning_rate=0.03,
                max_leaf_nodes=8,
                min_samples_leaf=200,
                l2_regularization=5.0,
                random_state=0,
            )
            trees.fit(inputs[later[train]], (target - base)[later[train]])
            out[later[test]] = base[later[test]] + trees.predict(inputs[later[test]])
    better.probability = np.clip(better.probability, 1e-3, 1 - 1e-3)
    better.weight = np.maximum(better.weight, 1e-3)
    return better


def hindsight(log: Log) -> Script:
    """The best weights at visit 2 as a function of the count at visit 1."""
    script, first = Script(log), np.zeros(len(log.ids), dtype=np.int64)
    first[log.prompt[log.visit == 1]] = log.successes[log.visit == 1]
    second = np.flatnonzero(log.visit == 2)
    seen, counts = unbiased_variance(log.successes, log.trials)[second], first[log.prompt[second]]
    for count in np.unique(counts):
        script.weight[second[counts == count]] = seen[counts == count].mean()
    return script


def line(name: str, ranges: dict[str, Figures]) -> str:
    """Markdown: variance ratio / log loss / MAE from the second visit on."""
    cells = (f"{f.variance_ratio:.4f}/{f.log_loss:.4f}/{f.mae:.4f}" for span, f in ranges.items() if span != "1")
    return f"| {name} | " + " | ".join(cells) + " |"


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Bounds for the replay of a real run.")
    parser.add_argument("log", type=Path)
    parser.add_argument("--embeddings", type=Path, help="cache file (.npy) for the prompts' embeddings")
    parser.add_argument("--seed", type=int, default=0, help="order of the prompts")
    options = parser.parse_args()
    log, settings = read_log(options.log), Settings(seed=options.seed)
    x_MD = prompt_embeddings(log, options.embeddings)
    if x_MD is None or log.texts is None:
        parser.error("the log has no prompt texts")
    script = Script(log, default_predictor(x_MD, log.ids, text_features(log.texts)))
    print("| | 2 | 3-10 | 11+ |\n| --- | --- | --- | --- |")
    print(line("default predictor", replay(log, script, settings).by_range()))
    print(line("boosted", replay(log, boosted(log, script, x_MD), settings).by_range()))
    second = replay(log, hindsight(log), settings).by_range()["2"]
    print(f"| second visit in hindsight | {second.variance_ratio:.4f} | | |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
