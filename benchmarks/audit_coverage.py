"""How often do the audit's intervals cover the truth? Logs are drawn from known p, the truth from rollouts of that p.

    python benchmarks/audit_coverage.py [--logged 8 4 2] [--logs 1000] [--seed 0]

Each log has 120 prompts of p ~ Beta(1/2, 1/2), whose logit grows by 0.05 a visit, 12 visits, longer completions where
p is low. It is replayed with the default predictor, as `allotment audit` does. The truth is that of all logs together:
for every visit, at the counts and with the baselines that the design has there, rewards are drawn with the true p and
signs of scores at random, and the square of the gradient is its variance; rollouts and tokens for the same precision
follow from the true p in closed form, at every quarter of a rollout or less. The gradient of a prompt is
``sqrt(kappa) p (1 - p)`` in a random direction.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
from scipy.special import expit, logit

from allotment.audit import Log, Replay, Settings, replay, summarise
from allotment.audit.counterfactual import Cell, Counterfactual
from allotment.audit.replaying import RANGES
from allotment.planning.gradient_size import USUAL_KAPPA
from allotment.prediction import Predictor, default_predictor
from allotment.types import FloatArray, IntArray

PROMPTS, VISITS, BATCH, GROWTH = 120, 12, 40, 0.05
REPEATS = 8
"""Draws of a visit."""
SAME = 1e-6
"""Figures that are this close are one: a belief that knows no difference is uniform but for rounding."""
MOST = 32
"""Most rollouts of a prompt."""
Key = tuple[str, int, float]
"""What, rollouts a prompt, prompts: one way of spending."""


def made(rng: np.random.Generator, logged: int, prompts: int = PROMPTS, visits: int = VISITS) -> tuple[Log, FloatArray]:
    """A log, and the true p of its visits [V]."""
    ability_M = logit(np.clip(rng.beta(0.5, 0.5, prompts), 1e-6, 1 - 1e-6))
    prompt_V, visit_V = np.tile(np.arange(prompts), visits), np.repeat(np.arange(1, visits + 1), prompts)
    p_V = expit(ability_M[prompt_V] + GROWTH * visit_V)
    trials_V = np.full(len(p_V), logged)
    lengths_V = logged * 100.0 * (2.0 - p_V) * rng.gamma(4.0, 0.25, len(p_V))
    log = Log(tuple(range(prompts)), prompt_V, visit_V, rng.binomial(logged, p_V), trials_V, lengths=lengths_V)
    return log, p_V


def gradient_squares(
    rng: np.random.Generator, p_V: FloatArray, counts_V: IntArray, mean_V: FloatArray, share_V: FloatArray, kappa: float
) -> FloatArray:
    """[V] the square of the gradient of each visit, with newly drawn rewards and directions."""
    inside_VN = np.arange(MOST) < counts_V[:, None]
    rewards_VN = (rng.random(inside_VN.shape) < p_V[:, None]) * inside_VN
    others_VN = (rewards_VN.sum(axis=1)[:, None] - rewards_VN) / np.maximum(counts_V - 1, 1)[:, None]
    share_V = np.where(counts_V > 1, share_V, 1.0)
    baseline_VN = share_V[:, None] * mean_V[:, None] + (1 - share_V[:, None]) * others_VN
    signs_VN = rng.choice((-1.0, 1.0), size=inside_VN.shape)
    noise_V = ((rewards_VN - baseline_VN) * signs_VN * inside_VN).sum(axis=1) / counts_V
    return (np.sqrt(kappa) * p_V * (1 - p_V) * rng.choice((-1.0, 1.0), size=len(p_V)) + noise_V) ** 2


@dataclass
class Truth:
    """Sums over the visits of all logs, by range of epochs, the last of all of them."""

    rng: np.random.Generator
    squares: dict[Key, FloatArray] = field(default_factory=lambda: defaultdict(lambda: np.zeros((2, 5))))
    """[2, 5] of the design, and of what it is compared with."""
    curves: dict[str, FloatArray] = field(default_factory=dict)
    """[3, F, 5] variance, tokens and rollouts of a split at each of :func:`fine_budgets`."""
    uniform: FloatArray = field(default_factory=lambda: np.zeros((3, 5)))
    """[3, 5] p (1 - p), tokens and number of one rollout each."""

    def add(self, played: Replay, p_V: FloatArray, found: tuple[Counterfactual, ...]) -> None:
        """Draw the visits of one log."""
        range_V = np.digitize(played.log.visit, [first for first, _ in list(RANGES.values())[1:]])

        def sums(values_V: FloatArray) -> FloatArray:
            parts = np.bincount(range_V, values_V, minlength=4)
            return np.append(parts, parts.sum())

        def squares(counts_V: IntArray, believes: bool, kappa: float) -> FloatArray:
            share_V = belief_shares(played, counts_V) if believes else np.zeros(len(p_V))
            rng = np.random.default_rng(drawn)  # the same numbers for what is compared
            return sums(gradient_squares(rng, p_V, counts_V, played.probability, share_V, kappa))

        logged, equal = played.settings.budget_per_prompt, np.ones(len(p_V), dtype=np.int64)
        lengths = played.log.lengths
        assert lengths is not None
        mean_V, a_V = lengths / played.log.trials, p_V * (1 - p_V)
        self.uniform += [sums(a_V), sums(mean_V), sums(np.ones(len(p_V)))]
        counts = {}
        for believes in (False, True):
            counts_FV = counts[believes] = split_counts(played, believes)
            share_FV = belief_shares(played, counts_FV) if believes else np.zeros(counts_FV.shape)
            share_FV = np.where(counts_FV > 1, share_FV, 1.0)
            error_FV = share_FV**2 * (p_V - played.probability) ** 2
            error_FV += (1 - share_FV) ** 2 * a_V / np.maximum(counts_FV - 1, 1)
            columns = ((a_V + error_FV) / counts_FV, counts_FV * mean_V, counts_FV)
            spent = np.array([[*map(sums, values_FV)] for values_FV in columns])
            name = "split, belief" if believes else "split"
            self.curves[name] = self.curves.get(name, 0.0) + spent
        for way in found * REPEATS:
            drawn = int(self.rng.integers(2**62))
            n, key = way.rollouts_per_prompt, (way.what, way.rollouts_per_prompt, way.prompts)
            if "split" in way.what:
                (place,) = np.flatnonzero(fine_budgets(logged, way.believes) == n)
                mine = squares(counts[way.believes][place], way.believes, 0.0)
                self.squares[key] += [mine, squares(n * equal, False, 0.0)]
            else:
                mine = squares(n * equal, way.believes, USUAL_KAPPA) / way.prompts
                self.squares[key] += [mine, squares(logged * equal, False, USUAL_KAPPA)]

    def of(self, way: Counterfactual) -> dict[str, FloatArray]:
        """[5] the true variance, rollouts and tokens of one way."""
        n, (mine, other) = way.rollouts_per_prompt, self.squares[way.what, way.rollouts_per_prompt, way.prompts]
        ratio = mine / np.where(other > 0, other, np.nan)
        if "split" not in way.what:
            return {"variance": ratio, "rollouts": ratio, "tokens": ratio}
        variance, tokens, counts = self.curves[way.what]
        rollouts, spent = np.full(5, np.inf), np.full(5, np.inf)
        for k in range(5):
            wanted = self.uniform[0, k] / (n - 1)
            if 0.0 < variance[-1, k] <= wanted:
                rollouts[k] = np.interp(-wanted, -variance[:, k], counts[:, k]) / (n * self.uniform[2, k])
                spent[k] = np.interp(-wanted, -variance[:, k], tokens[:, k]) / (n * self.uniform[1, k])
        return {"variance": ratio, "rollouts": rollouts, "tokens": spent}


def belief_shares(played: Replay, counts_V: IntArray) -> FloatArray:
    """[V] the weight of the belief that leaves least variance, by what the belief says of itself."""
    a, m = played.variance, played.probability
    return np.asarray(a / np.maximum(a + (counts_V - 1) * np.maximum(m * (1 - m) - a, 0.0), 1e-300))


def least(logged: int, believes: bool) -> int:
    """Rollouts of a prompt of a split."""
    return 1 if believes else min(3, logged)


def fine_budgets(logged: int, believes: bool) -> FloatArray:
    """[F] from the lower bound to twice the budget."""
    low, high = least(logged, believes), 2 * logged
    return np.union1d(np.linspace(low, low + 1, 17), np.linspace(low, high, 4 * (high - low) + 1))


def split_counts(played: Replay, believes: bool) -> IntArray:
    """[F, V] the replay's predictions, split anew at each of :func:`fine_budgets`."""
    logged, estimator = played.settings.budget_per_prompt, "shrinkage" if believes else "rloo"
    settings = Settings(logged, least(logged, believes), MOST, estimator, BATCH)
    return played.under(settings).counts_at(fine_budgets(logged, believes))


@dataclass(frozen=True)
class Coverage:
    """How often the intervals of one figure cover its truth."""

    way: Counterfactual
    span: str
    figure: str
    truth: float
    share: float
    """Of the logs with an interval."""
    below: float
    """Share of the logs whose interval lies below the truth."""
    half_width: float
    """In the mean."""


def coverage(
    logged: int, logs: int, seed: int, prompts: int = PROMPTS, visits: int = VISITS, make: type[Predictor] | None = None
) -> list[Coverage]:
    """The coverage of every figure over made logs."""
    rng = np.random.default_rng([seed, logged])
    truth, found, settings = (
        Truth(np.random.default_rng([seed, logged, 1])),
        [],
        Settings(logged, min(3, logged), MOST, batch=BATCH),
    )
    for _ in range(logs):
        log, p_V = made(rng, logged, prompts, visits)
        played = replay(log, default_predictor() if make is None else make(), settings)
        ways = summarise(played, seed=int(rng.integers(2**31))).counterfactuals.found
        truth.add(played, p_V, ways)
        found.append({(way.what, way.rollouts_per_prompt, way.prompts): way.by_range for way in ways})
    result = []
    for way in ways:
        true = truth.of(way)
        for span in way.by_range:
            k = 4 if span == "all" else list(RANGES).index(span)
            cells: list[Cell] = [of[way.what, way.rollouts_per_prompt, way.prompts][span] for of in found]
            for figure in ("variance", "rollouts", "tokens"):
                ends = np.array([(i.low, i.high) for c in cells if (i := getattr(c, figure)) is not None])
                value = true[figure][k]
                inside = (ends[:, 0] - SAME <= value) & (value <= ends[:, 1] + SAME)
                wide = float(np.mean(ends[:, 1] - ends[:, 0]) / 2)
                result.append(
                    Coverage(
                        way,
                        span,
                        figure,
                        float(value),
                        float(inside.mean()),
                        float((ends[:, 1] + SAME < value).mean()),
                        wide,
                    )
                )
    return result


def main() -> None:
    """Print a line a figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--logged", type=int, nargs="+", default=[8, 4, 2], help="rollouts a visit of the logs")
    parser.add_argument("--logs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for logged in options.logged:
        began = time.process_time()
        for c in coverage(logged, options.logs, options.seed):
            name = f"{c.way.what}, {c.way.rollouts_per_prompt} a prompt, {c.way.prompts:g} x prompts"
            print(
                f"logged {logged}: {name:48} {c.span:4} {c.figure:8} truth {c.truth:.4f} covered {c.share:.3f} "
                f"(se {np.sqrt(c.share * (1 - c.share) / options.logs):.3f}) below {c.below:.3f} ±{c.half_width:.4f}",
                flush=True,
            )
        print(
            f"logged {logged}: {options.logs} logs, {time.process_time() - began:.0f} s of processor time", flush=True
        )


if __name__ == "__main__":
    main()
