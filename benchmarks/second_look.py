"""Does a second look lower the variance of the gradient? Against one round, at equal rollouts.

    python benchmarks/second_look.py bias                       # of the pooled group, every outcome enumerated
    python benchmarks/second_look.py replay rollouts.jsonl      # success rates of a real run, prompt by prompt
    python benchmarks/second_look.py lab                        # real rollouts and scores of the lab's policy

All figures are sums of variances over prompts, relative to 8 rollouts each (uniform), bounds 3 and 32, RLOO; mean and
standard error over seeds (replay) or batches (lab), paired: every planner meets the same prompts.

replay: the success probability of a visit is a quantile of Beta(S + 1/2, F + 1/2), S and F its successes and failures
with those of the visits around it, discounted by 0.8 a visit; the quantile is drawn once for each prompt. Every planner
generates its own rollouts from it and learns from them alone. Variances by formula, scores independent of rewards (the
model of VIP). 128 prompts a step.

lab: 192 rollouts of each prompt stand for the policy; groups are drawn from them with replacement, so that the true
gradient and the variance of one round are known exactly. Two rounds by Monte Carlo, against one round on the same
draws.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import betaincinv

from allotment import VIP
from allotment.allocation import allocate_exact
from allotment.lab.checkpoint import load_lab
from allotment.lab.config import GradientVarianceConfig
from allotment.lab.generation import Lab, seeded_generator
from allotment.lab.gradient_moments import Moments
from allotment.lab.scores import directional_scores, random_directions
from allotment.learning import second_look_advantages
from allotment.planning import SecondLook
from allotment.prediction import DiscountedCounts, HierarchicalPredictor, Predictor
from allotment.tasks.mixture import Problem, load_mixture
from allotment.types import FloatArray, IntArray, Plan, Posterior

SHARES = (0.25, 0.5, 0.75)
MEAN, LOWER, UPPER = 8, 3, 32
RANGES = {"epoch 1": (0, 1), "epoch 2": (1, 2), "3-10": (2, 10), "11-44": (10, 44)}
VISITS, BATCH = 44, 128
BELIEFS: dict[str, Callable[[], Predictor]] = {"counts": DiscountedCounts, "hierarchical": HierarchicalPredictor}


def planner(n_prompts: int, predictor: Any, share: float | None) -> VIP:
    """VIP over a batch; in two rounds if there is a first share."""
    settings: dict[str, Any] = {} if share is None else {"rounds": SecondLook(first_share=share)}
    return VIP(budget=MEAN * n_prompts, bounds=(LOWER, UPPER), predictor=predictor, **settings)


def oracle_counts(variance_Q: FloatArray) -> IntArray:
    """The exact split if every success probability were known."""
    return allocate_exact(variance_Q, MEAN * len(variance_Q), lower=LOWER, upper=UPPER).counts


# --- bias ------------------------------------------------------------------------------------------------------------


def bias(name: str, p: float, first: int, expected: int, later_of: tuple[int, ...]) -> float:
    """Expectation over the gradient p (1 - p), minus 1; ``later_of[s]`` rollouts follow s successes."""
    total = 0.0
    for early in itertools.product([0.0, 1.0], repeat=first):
        later = later_of[int(sum(early))]
        late_PN = np.array(list(itertools.product([0.0, 1.0], repeat=later)))
        rewards_PN = np.hstack([np.tile(np.array(early), (len(late_PN), 1)), late_PN])
        groups = torch.arange(len(rewards_PN)).repeat_interleave(first + later)
        rounds = torch.tensor([0] * first + [1] * later).repeat(len(rewards_PN))
        a_N = second_look_advantages(
            torch.tensor(rewards_PN.ravel()),
            groups,
            rounds,
            torch.full_like(groups, expected),
            name,  # type: ignore[arg-type]
        )
        chance_P = np.where(rewards_PN > 0, p, 1 - p).prod(1)
        total += float(chance_P @ (a_N.numpy().reshape(rewards_PN.shape) * (rewards_PN - p)).mean(1))
    return total / (p * (1 - p)) - 1


def print_bias() -> None:
    """The rule is the planner's own: 4 rollouts, then what 128 equally unknown prompts get by their successes."""
    rng = np.random.default_rng(0)
    two = planner(BATCH, DiscountedCounts(), 0.5)
    plan = two.ask(range(BATCH))
    rewards = (rng.random(plan.budget) < np.repeat(rng.beta(0.35, 0.65, BATCH), plan.counts)).astype(float)
    two.tell(plan, rewards, plan.group_ids())
    second = two.ask(range(BATCH))
    won_Q = rewards.reshape(BATCH, -1).sum(1).astype(int)
    rule = tuple(int(np.median(second.counts[won_Q == s])) for s in range(5))
    print(f"rollouts after 0 to 4 successes of 4: {rule}\n\n| p | unbiased | pooled |\n|---:|---:|---:|")
    for p in (0.02, 0.1, 0.25, 0.5, 0.75, 0.9):
        print(f"| {p} | {bias('unbiased', p, 4, 4, rule):+.1e} | {bias('pooled', p, 4, 4, rule):+.3f} |")


# --- replay ----------------------------------------------------------------------------------------------------------


def load_rates(path: Path) -> FloatArray:
    """[2, M, VISITS] smoothed successes and failures of each visit."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    won_MV = np.array([row["successes"][:VISITS] for row in rows], dtype=float)
    lost_MV = np.array([row["rollouts_per_visit"] for row in rows])[:, None] - won_MV
    near_VV = 0.8 ** np.abs(np.subtract.outer(np.arange(VISITS), np.arange(VISITS)))
    return np.stack([won_MV @ near_VV, lost_MV @ near_VV]) + 0.5


def two_round_variance(p: FloatArray, won: FloatArray, m: FloatArray, k: FloatArray, e: FloatArray) -> FloatArray:
    """[Q] variance given round 0 of the estimator made for e rollouts, for k: sum of E[(weight (r - b))^2]."""
    v, n = p * (1 - p), m + e
    own, other = (m - 1) / (n - 1), np.where(k > 1, np.minimum(m / (n - 1), 1), 1.0)
    early = np.zeros_like(p)
    for reward, count in ((0.0, m - won), (1.0, won)):
        left = (won - reward) / np.maximum(m - 1, 1)
        early += count * ((reward - own * left - (1 - own) * p) ** 2 + (1 - own) ** 2 * v / np.maximum(k, 1))
    late = v * (1 + (1 - other) ** 2 / np.maximum(k - 1, 1)) + other**2 * (won / m - p) ** 2
    return early / n**2 + (e / n) ** 2 * late / np.maximum(k, 1)


def replay_seed(rates_2MV: FloatArray, belief: Callable[[], Predictor], seed: int) -> dict[str, FloatArray]:
    """[VISITS] summed variance of each planner."""
    rng = np.random.default_rng(seed)
    p_MV = betaincinv(*rates_2MV, rng.random((rates_2MV.shape[1], 1)))
    order = rng.permutation(len(p_MV))
    planners = {"rounds=1": planner(BATCH, belief(), None)}
    planners |= {f"rounds=2, first {share}": planner(BATCH, belief(), share) for share in SHARES}
    sums = {name: np.zeros(VISITS) for name in ["uniform", "oracle", *planners, "pooled, first 0.5 (biased)"]}
    for visit in range(VISITS):
        for start in range(0, len(order) - BATCH + 1, BATCH):
            ids = order[start : start + BATCH]
            p_Q = p_MV[ids, visit]
            v_Q = p_Q * (1 - p_Q)
            sums["uniform"][visit] += v_Q.sum() / (MEAN - 1)
            sums["oracle"][visit] += (v_Q / (oracle_counts(v_Q) - 1)).sum()
            for name, one in planners.items():
                plans, won = simulate(one, ids, p_Q, rng)
                n_Q = sum(plan.counts for plan in plans)
                if len(plans) == 1:
                    sums[name][visit] += (v_Q / (n_Q - 1)).sum()
                    continue
                m, k, e = (
                    np.asarray(x, dtype=float) for x in (plans[0].counts, plans[1].counts, plans[0].expected_later)
                )
                sums[name][visit] += two_round_variance(p_Q, won, m, k, e).sum()
                if name.endswith("0.5"):
                    sums["pooled, first 0.5 (biased)"][visit] += two_round_variance(p_Q, won, m, k, k).sum()
    return sums


def simulate(one: VIP, ids: IntArray, p_Q: FloatArray, rng: np.random.Generator) -> tuple[list[Plan], FloatArray]:
    """One step of a planner; its plans and the successes of the first round."""
    plans: list[Plan] = []
    won_Q = np.zeros(len(ids))
    while not plans or not one.done:
        plan = one.ask(ids)
        rewards = (rng.random(plan.budget) < np.repeat(p_Q, plan.counts)).astype(float)
        if not plans:
            won_Q = np.bincount(np.repeat(np.arange(len(ids)), plan.counts), rewards, minlength=len(ids))
        one.tell(plan, rewards, plan.group_ids())
        plans.append(plan)
    return plans, won_Q


def print_replay(path: Path, belief: Callable[[], Predictor], seeds: int) -> None:
    """A row per planner, a column per range of epochs; and the difference to one round."""
    rates = load_rates(path)
    runs = [replay_seed(rates, belief, seed) for seed in range(seeds)]
    print("| planner | " + " | ".join(RANGES) + " |\n|---|" + "---:|" * len(RANGES))
    for name in runs[0]:
        cells = []
        for low, high in RANGES.values():
            ratios = [run[name][low:high].sum() / run["uniform"][low:high].sum() for run in runs]
            against = [run["rounds=1"][low:high].sum() / run["uniform"][low:high].sum() for run in runs]
            cells.append(cell(ratios, against))
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def cell(ratios: Sequence[float], against: Sequence[float]) -> str:
    """Mean and, in brackets, the paired difference to one round with its standard error."""
    difference = np.subtract(ratios, against)
    error = difference.std(ddof=1) / np.sqrt(len(difference))
    return f"{np.mean(ratios):.3f} ({difference.mean():+.3f} ± {error:.3f})"


# --- lab -------------------------------------------------------------------------------------------------------------


class Frozen:
    """A belief that is told nothing more: every replicate starts from the same."""

    def __init__(self, posterior: Posterior) -> None:
        self._posterior = posterior

    def predict(self, ids: Any) -> Posterior:
        """The belief, whatever the ids: they are 0 .. Q - 1."""
        return self._posterior

    def observe(self, ids: Any, successes: Any, trials: Any) -> None:
        """Nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: Any) -> None:
        """Nothing."""


def rewards_and_scores(
    lab: Lab, problems: Sequence[Problem], config: GradientVarianceConfig, batch: int
) -> tuple[FloatArray, FloatArray]:
    """[Q, N] rewards and [Q, N, D] scores along D random directions, ``config.rollouts`` rollouts of each problem."""
    directions_PD = random_directions(lab, config.directions, config.seed, 2)
    rewards, scores = [], []
    for first in range(0, len(problems), 16):  # bounds the memory
        part = problems[first : first + 16]
        counts = np.full(len(part), config.rollouts)
        rollouts = lab.rollouts(part, counts, seeded_generator(config.seed, 1, batch, first))
        shape = (len(part), config.rollouts)
        rewards.append(rollouts.rewards_N.reshape(shape))
        scores.append(directional_scores(lab, part, rollouts, directions_PD).reshape(*shape, -1))
    return np.concatenate(rewards), np.concatenate(scores)


def belief_after(lab: Lab, problems: Sequence[Problem], others: Sequence[Problem], history: int, key: int) -> Posterior:
    """The default counts after ``history`` rollouts of each prompt, in visits of 8. Of 0: others were seen once."""
    counts = DiscountedCounts()
    for visit in range(max(1, history // 8)):
        seen = problems if history else others
        rollouts = lab.rollouts(seen, np.full(len(seen), 8), seeded_generator(77, key, visit))
        won = rollouts.rewards_N.reshape(len(seen), 8).sum(1).astype(int)
        counts.observe([p.id for p in seen], won, np.full(len(seen), 8))
    return counts.predict([p.id for p in problems])


def estimates(one: VIP, name: str, rewards_QU: FloatArray, scores_QUD: FloatArray) -> FloatArray:
    """[Q, D] one step's estimate for each prompt, from the first of U rollouts drawn for it, in order."""
    n_prompts = len(rewards_QU)
    used_Q = np.zeros(n_prompts, dtype=np.int64)
    parts: list[tuple[IntArray, IntArray, IntArray]] = []
    while not parts or not one.done:
        plan = one.ask(range(n_prompts))
        rows_N = np.repeat(np.arange(n_prompts), plan.counts)
        starts_N = np.repeat(used_Q - np.cumsum(plan.counts) + plan.counts, plan.counts)
        columns_N = np.arange(len(rows_N)) + starts_N
        one.tell(plan, rewards_QU[rows_N, columns_N], rows_N)
        parts.append((rows_N, columns_N, np.full(len(rows_N), plan.round)))
        used_Q += plan.counts
    expected_Q = np.zeros_like(used_Q) if plan.expected_later is None else plan.expected_later
    rows_N, columns_N, rounds_N = (np.concatenate(column) for column in zip(*parts, strict=True))
    rewards_N = rewards_QU[rows_N, columns_N]
    tensors = (torch.from_numpy(x) for x in (rewards_N, rows_N, rounds_N, expected_Q[rows_N]))
    a_N = second_look_advantages(*tensors, name).numpy()  # type: ignore[arg-type]
    weighted_ND = (a_N / used_Q[rows_N])[:, None] * scores_QUD[rows_N, columns_N]
    return np.stack([np.bincount(rows_N, column, minlength=n_prompts) for column in weighted_ND.T], axis=1)


def excess(
    planners: dict[str, tuple[VIP, str]],
    rewards_QN: FloatArray,
    scores_QND: FloatArray,
    key: list[int],
    replicates: int,
) -> dict[str, float]:
    """Squared error of each planner minus that of the first, on the same rollouts; summed over prompts."""
    rng = np.random.default_rng(key)
    centred = scores_QND - scores_QND.mean(1, keepdims=True)
    truth_QD = (rewards_QN[:, :, None] * centred).mean(1)
    rows_Q1 = np.arange(len(rewards_QN))[:, None]
    totals = dict.fromkeys(planners, 0.0)
    for _ in range(replicates):
        picked_QU = rng.integers(0, rewards_QN.shape[1], (len(rewards_QN), UPPER))
        drawn = rewards_QN[rows_Q1, picked_QU], centred[rows_Q1, picked_QU]
        for name, (one, estimator) in planners.items():
            totals[name] += float(((estimates(one, estimator, *drawn) - truth_QD) ** 2).sum(0).mean()) / replicates
    first = next(iter(totals.values()))
    return {name: total - first for name, total in totals.items()}


def print_lab(regime: str, batches: int, replicates: int, histories: Sequence[int]) -> None:
    """A row per planner, a column per length of history."""
    torch.set_num_threads(1)
    config = GradientVarianceConfig(regime=regime, batches=max(batches, 2), directions=2)  # type: ignore[arg-type]
    lab, pool = load_lab(config.regime), load_mixture().pool
    order = np.random.default_rng(0).permutation(len(pool))
    ratios: dict[tuple[str, int], list[float]] = {}
    for number in range(batches):
        problems = [pool[i] for i in order[number * config.prompts : (number + 1) * config.prompts]]
        others = [pool[i] for i in order[-256:]]
        rewards_QN, scores_QND = rewards_and_scores(lab, problems, config, batch=number)
        moments, p_Q = Moments.of(rewards_QN, scores_QND), rewards_QN.mean(1)
        uniform = moments.variance(np.full(len(problems), MEAN)).sum()
        for history in histories:
            posterior = belief_after(lab, problems, others, history, number)
            rows = {"oracle": moments.variance(oracle_counts(p_Q * (1 - p_Q))).sum()}
            belief, n = Frozen(posterior), len(problems)
            planners = {"rounds=1": (planner(n, belief, None), "unbiased")}
            planners |= {f"rounds=2, first {share}": (planner(n, belief, share), "unbiased") for share in SHARES}
            planners["pooled, first 0.5 (biased)"] = (planner(n, belief, 0.5), "pooled")
            exact = moments.variance(planner(n, belief, None).ask(range(n)).counts).sum()
            more = excess(planners, rewards_QN, scores_QND, [number, history], replicates)
            rows |= {name: exact + value for name, value in more.items()}
            for name, value in rows.items():
                ratios.setdefault((name, history), []).append(value / uniform)
    names = list(dict.fromkeys(name for name, _ in ratios))
    print("| planner | " + " | ".join(f"{h} past rollouts" for h in histories) + " |\n|---|" + "---:|" * len(histories))
    for name in names:
        cells = [cell(ratios[name, history], ratios["rounds=1", history]) for history in histories]
        print(f"| {name} | " + " | ".join(cells) + " |")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("bias")
    replay = commands.add_parser("replay")
    replay.add_argument("log", type=Path)
    replay.add_argument("--predictor", choices=BELIEFS, default="counts")
    replay.add_argument("--seeds", type=int, default=5)
    lab = commands.add_parser("lab")
    lab.add_argument("--regime", choices=("scratchpad", "short"), default="scratchpad")
    lab.add_argument("--batches", type=int, default=6)
    lab.add_argument("--replicates", type=int, default=200)
    lab.add_argument("--histories", type=int, nargs="+", default=[0, 8, 32])
    options = parser.parse_args()
    if options.command == "bias":
        print_bias()
    elif options.command == "replay":
        print_replay(options.log, BELIEFS[options.predictor], options.seeds)
    else:
        print_lab(options.regime, options.batches, options.replicates, options.histories)


if __name__ == "__main__":
    main()
