"""What tells before the first visit how hard a prompt is? One table over data sets and what is known of a prompt.

    python benchmarks/first_visit.py [--sets scratchpad pronunciation smollm2 LOG.jsonl ...] [--splits 5]

``scratchpad``, ``pronunciation``: prompts of the lab's pool, rollouts drawn here at the fixed policy. ``smollm2``: the
file that benchmarks/smollm2_data.py made. A path: a log in the format ``counts``, of which the first two visits are
replayed. The default predictor lives through the prompts in random order, ``--batch`` at a time, as in ``allotment
audit``; it knows nothing of the first one. A cell is the variance of the gradient under its split of 8 rollouts a
prompt, relative to the uniform split (standard error over prompts), mean over the orders:

* new: first visits of the second half of the prompts, the first half being known by one visit each;
* start: first visits of all prompts, from the first step on;
* again: second visits of all prompts;
* best quarter: mean reward variance of the quarter of the new prompts of a step that it would choose, relative to all.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import track

import smollm2_data
from allotment.audit import Log, Settings, replay
from allotment.audit.figures import unbiased_variance
from allotment.audit.scoring import shrinkage_variance, unbiased_square_error
from allotment.lab.checkpoint import load_lab
from allotment.lab.embeddings import prompt_embeddings
from allotment.prediction import HierarchicalPredictor, distinct_parts, embed, text_features
from allotment.pricing import ShrinkagePrice
from allotment.state import load_state
from allotment.tasks.mixture import Problem, load_mixture
from allotment.types import FloatArray, IntArray
from hidden_features import ROLLOUTS, simulated_log

VIEWS: dict[str, tuple[str, ...]] = {
    "nothing": (),
    "siblings": ("siblings",),
    "embedding": ("embedding",),
    "counted": ("counted",),
    "embedding + counted": ("embedding", "counted"),
    "answer": ("answer",),
    "surprise": ("surprise",),
    "confidence": ("confidence",),
    "hidden": ("hidden",),
    "hidden + confidence": ("hidden", "confidence"),
    "siblings + confidence": ("siblings", "confidence"),
    "embedding + counted + hidden": ("embedding", "counted", "hidden"),
    "everything": ("siblings", "embedding", "counted", "answer", "surprise", "confidence", "hidden"),
}
"""What a predictor knows of a prompt: blocks of numbers, each counting the same in the distance between prompts.

siblings: the task of the prompt. embedding: all-MiniLM-L6-v2 of its text. counted: ``text_features``. answer: length
and size of the reference answer. surprise: the policy's mean log-probability of the prompt. confidence: entropy of the
first token it would write, and the largest probability. hidden: its hidden states at the last token of the prompt.
"""
COLUMNS = ("new", "start", "again", "best quarter")
LAB_PROMPTS = 1000


@dataclass(frozen=True, eq=False)
class Known:
    """Prompts of a data set, their first two visits, and what is known of them."""

    ids: tuple[str, ...]
    """[M]."""
    successes_2M: IntArray
    """[2, M] of the two visits; a prompt that has no second one has 0 of 0 there."""
    trials_2M: IntArray
    judged_by: tuple[IntArray, IntArray]
    """Successes and rollouts [M] by which first visits are judged: at a fixed policy all there are."""
    blocks: dict[str, FloatArray]
    """[M, D] by name."""

    def log(self, batch: int, seed: int) -> Log:
        """Both visits, each in an order of its own; ``batch`` prompts a step."""
        order = np.concatenate([np.random.default_rng([seed, visit]).permutation(len(self.ids)) for visit in (0, 1)])
        visit_V = np.repeat([1, 2], len(self.ids))
        steps_a_visit = -(-len(self.ids) // batch)
        step_V = np.tile(np.arange(len(self.ids)) // batch, 2) + steps_a_visit * (visit_V - 1)
        k_V, n_V = self.successes_2M[visit_V - 1, order], self.trials_2M[visit_V - 1, order]
        has_V = n_V > 0
        return Log(self.ids, order[has_V], visit_V[has_V], k_V[has_V], n_V[has_V], step_V[has_V])

    def vectors(self, view: str) -> FloatArray | None:
        """[M, D] the blocks of a view beside each other, each of total variance 1; None where there are none."""
        found = [self.blocks[name] for name in VIEWS[view] if name in self.blocks]
        if not found:
            return None
        centred = [block - block.mean(0) for block in found]
        return np.hstack([block / max(float(np.sqrt(block.var(0).sum())), 1e-12) for block in centred])

    def views(self) -> list[str]:
        """Those that can be made; "everything" of what there is."""
        return [n for n, parts in VIEWS.items() if n == "everything" or all(part in self.blocks for part in parts)]


def text_blocks(
    texts: Sequence[str], answers: Sequence[str], embeddings: FloatArray | None = None
) -> dict[str, FloatArray]:
    """What texts alone say."""
    own = distinct_parts(texts)
    vectors = embed(own, progress=True).astype(np.float64) if embeddings is None else embeddings
    return {"embedding": vectors, "counted": _unit(text_features(own)), "answer": _unit(answer_features(answers))}


def answer_features(answers: Sequence[str]) -> FloatArray:
    """[M, 4] length in characters and in words, size where it is a number, whether it is one."""
    rows = []
    for answer in answers:
        number = answer.replace(",", "").lstrip("-")
        is_number = number.replace(".", "", 1).isdigit()
        size = np.log1p(float(number)) if is_number else 0.0
        rows.append(
            [np.log1p(len(answer)), np.log1p(len(answer.split())), size, float(is_number) - answer.startswith("-")]
        )
    return np.array(rows)


def one_hot(names: Sequence[str]) -> FloatArray:
    """[M, F]."""
    return np.asarray(np.equal.outer(np.array(names), np.unique(names)), dtype=np.float64)


def _unit(block: FloatArray) -> FloatArray:
    """Each column with mean 0 and variance 1; columns that do not vary are left out."""
    centred, spread = block - block.mean(0), block.std(0)
    varies = spread > 1e-9
    return centred[:, varies] / spread[varies]


@torch.no_grad()
def of_lab(regime: str) -> Known:
    """Prompts of the lab's pool; their rollouts are drawn here."""
    lab = load_lab(regime)
    if regime == "pronunciation":
        from allotment.tasks.pronunciation import load_words

        pool: list[Problem] = list(load_words().pool[:LAB_PROMPTS])
        texts = text_blocks([p.question for p in pool], [p.answer for p in pool])
    else:
        pool = list(load_mixture().pool)
        questions = [p.question for p in pool]
        texts = text_blocks(questions, [p.answer for p in pool], prompt_embeddings(questions))
        texts["siblings"] = one_hot([p.level for p in pool])
    if regime == "pronunciation":
        from allotment.tasks.pronunciation import letter_counts

        texts["counted"] = _unit(letter_counts([p.question for p in pool]))
    answer_M1 = torch.full((len(pool), 1), lab.tokenizer.answer)
    hidden = lab.policy.hidden(lab.encode(pool), answer_M1)[0][:, 0]
    chances = lab.policy.head(hidden).double().softmax(-1)
    confidence = torch.stack([torch.special.entr(chances).sum(1), chances.max(1).values], 1).numpy()
    seen = simulated_log(lab, pool, 0)
    successes = np.zeros((seen.visit.max(), len(pool)), dtype=np.int64)
    successes[seen.visit - 1, seen.prompt] = seen.successes
    trials = np.full((2, len(pool)), ROLLOUTS)
    judged_by = successes.sum(0), np.full(len(pool), ROLLOUTS * len(successes))
    blocks = {**texts, "hidden": _unit(hidden.double().numpy()), "confidence": _unit(confidence)}
    return Known(tuple(p.id for p in pool), successes[:2], trials, judged_by, blocks)


def of_smollm2(folder: Path) -> Known:
    """The file of benchmarks/smollm2_data.py."""
    lines = [json.loads(line) for line in (folder / "counts.jsonl").read_text().splitlines()]
    state = load_state(folder / "prompts.safetensors", kind=smollm2_data.KIND)
    texts, answers = [line["prompt"] for line in lines], [line["answer"] for line in lines]
    blocks = text_blocks(texts, answers, state["embedding"].astype(np.float64))
    blocks["siblings"] = one_hot([line["family"] for line in lines])
    blocks["hidden"] = state["hidden"].astype(np.float64)
    blocks["surprise"] = _unit(state["log_probability"][:, None].astype(np.float64))
    blocks["confidence"] = _unit(np.stack([state["entropy"], state["largest"]], 1).astype(np.float64))
    successes = np.array([line["successes"] for line in lines]).T
    trials = np.full_like(successes, smollm2_data.VISIT)
    judged_by = successes.sum(0), trials.sum(0)
    return Known(tuple(line["prompt_id"] for line in lines), successes[:2], trials[:2], judged_by, blocks)


def of_counts(path: Path) -> Known:
    """A real run: the policy changes, so first visits are judged by themselves alone."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    blocks = text_blocks([line["prompt"] for line in lines], [str(line.get("answer", "")) for line in lines])
    successes = np.array([(line["successes"] + [0])[:2] for line in lines]).T
    has = np.array([[len(line["successes"]) > visit for line in lines] for visit in (0, 1)])
    trials = has * np.array([line["rollouts_per_visit"] for line in lines])
    return Known(tuple(str(line["prompt_id"]) for line in lines), successes, trials, (successes[0], trials[0]), blocks)


@dataclass(frozen=True, eq=False)
class Sums:
    """By column and prompt: what a predictor's split left and what uniform left, over all orders; [C, M]."""

    left: FloatArray
    uniform: FloatArray

    def ratio(self) -> tuple[FloatArray, FloatArray]:
        """[C] ratios of sums and their standard errors over prompts (linearised)."""
        ratios = self.left.sum(1) / self.uniform.sum(1)
        return ratios, self._error(self.left - ratios[:, None] * self.uniform)

    def against(self, other: Sums) -> tuple[FloatArray, FloatArray]:
        """[C] differences of the ratios to another predictor's on the same orders."""
        apart = self.ratio()[0] - other.ratio()[0]
        return apart, self._error(self.left - other.left - apart[:, None] * self.uniform)

    def _error(self, residual_CM: FloatArray) -> FloatArray:
        count = residual_CM.shape[1]
        return np.sqrt((residual_CM**2).sum(1) * count / (count - 1)) / self.uniform.sum(1)


def sums(known: Known, view: str, settings: Settings, batch: int, splits: int) -> Sums:
    """A view's sums over so many orders."""
    left, uniform = (np.zeros((len(COLUMNS), len(known.ids))) for _ in range(2))
    vectors = known.vectors(view)
    k_M, n_M = known.judged_by
    for seed in range(splits):
        log = known.log(batch, seed)
        played = replay(log, HierarchicalPredictor(vectors, ids=None if vectors is None else known.ids), settings)
        first_V, row_V = log.visit == 1, log.prompt
        judged_V = np.where(first_V, k_M[row_V], log.successes), np.where(first_V, n_M[row_V], log.trials)
        variance_V = unbiased_variance(*judged_V)
        left_V = _left(played.counts, variance_V, judged_V, played.probability, played.weights, settings)
        uniform_V = variance_V * settings.compared.variance(np.full(len(row_V), settings.budget_per_prompt))
        new_V = first_V & (log.step >= -(-len(known.ids) // batch) // 2)
        for column, part_V in enumerate((new_V, first_V, ~first_V)):
            left[column] += np.bincount(row_V[part_V], left_V[part_V], len(known.ids))
            uniform[column] += np.bincount(row_V[part_V], uniform_V[part_V], len(known.ids))
        best_V = np.zeros(len(row_V), dtype=bool)
        for rows_B in (np.flatnonzero(log.step == step) for step in np.unique(log.step[new_V])):
            tied = np.random.default_rng([seed, int(log.step[rows_B[0]])]).permutation(len(rows_B))
            best_V[rows_B[np.lexsort((tied, -played.weights[rows_B]))[: len(rows_B) // 4]]] = True
        share = best_V.sum() / new_V.sum()
        left[3] += np.bincount(row_V[best_V], variance_V[best_V], len(known.ids)) / share
        uniform[3] += np.bincount(row_V[new_V], variance_V[new_V], len(known.ids))
    return Sums(left, uniform)


def _left(
    counts_V: IntArray,
    variance_V: FloatArray,
    judged_V: tuple[IntArray, IntArray],
    probability_V: FloatArray,
    weights_V: FloatArray,
    settings: Settings,
) -> FloatArray:
    if not settings.believes:
        return np.asarray(variance_V * settings.compared.variance(counts_V))
    share_V = ShrinkagePrice.of_moments(probability_V, weights_V).shares(counts_V)
    return shrinkage_variance(variance_V, unbiased_square_error(*judged_V, probability_V), share_V, counts_V)


def sources(name: str, smollm2: Path) -> Callable[[], Known]:
    """How the data set of that name is read."""
    if name in ("scratchpad", "short", "pronunciation"):
        return lambda: of_lab(name)
    return (lambda: of_smollm2(smollm2)) if name == "smollm2" else lambda: of_counts(Path(name))


def table(found: dict[str, dict[str, Sums]], column: int) -> str:
    """Markdown: a row a view, a cell a data set: ratio (se), difference to knowing nothing (se)."""
    lines = [f"| {COLUMNS[column]} | " + " | ".join(found) + " |", "|---" * (len(found) + 1) + "|"]
    for view in VIEWS:
        cells = []
        for by_view in found.values():
            if view not in by_view:
                cells.append("")
                continue
            (ratio, error), (apart, apart_error) = by_view[view].ratio(), by_view[view].against(by_view["nothing"])
            own = f"{ratio[column]:.3f} ({error[column]:.3f})"
            cells.append(own if view == "nothing" else f"{own}, {apart[column]:+.3f} ({apart_error[column]:.3f})")
        if any(cells):
            lines.append(f"| {view} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=["scratchpad", "smollm2"])
    parser.add_argument("--splits", type=int, default=5, help="orders of the prompts")
    parser.add_argument("--batch", type=int, default=32, help="prompts of a step")
    parser.add_argument("--estimator", choices=("rloo", "shrinkage"), default="rloo")
    parser.add_argument("--views", nargs="+", choices=list(VIEWS), default=list(VIEWS))
    parser.add_argument("--smollm2", type=Path, default=smollm2_data.SHIPPED, help="folder of the data set smollm2")
    own = parser.parse_args()
    torch.set_num_threads(1)
    settings = Settings(estimator=own.estimator, lower=1 if own.estimator == "shrinkage" else 3)
    found: dict[str, dict[str, Sums]] = {}
    for name in own.sets:
        known = sources(name, own.smollm2)()
        views = [view for view in known.views() if view in (*own.views, "nothing")]
        found[Path(name).stem if name.endswith("jsonl") else name] = {
            view: sums(known, view, settings, own.batch, own.splits) for view in track(views, description=name)
        }
    print("\n\n".join(table(found, column) for column in range(len(COLUMNS))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
