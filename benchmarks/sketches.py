"""Score sketches: how much of the gain of exact ones the cheap ones keep, and what they cost.

``python benchmarks/sketches.py variance`` (20 minutes): gradient variance relative to uniform by regime, seed, sketch,
its size and the length of the history, all judged by the same rollouts. ``python benchmarks/sketches.py cost`` (a
minute): share of a step in the lab, and time beside a log-softmax at the size of a real vocabulary. Prints markdown.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from allotment.lab.checkpoint import load_lab
from allotment.lab.config import GradientVarianceConfig, SketchName, TrainConfig
from allotment.lab.generation import Lab, seeded_generator
from allotment.lab.gradient_measurement import measured
from allotment.lab.gradient_moments import Moments
from allotment.lab.past import PastStep, past_steps
from allotment.lab.planners import make_planner
from allotment.lab.scores import Sketch, sketch_named
from allotment.lab.train import Trainer
from allotment.learning import SketchDirections, last_layer_scores
from allotment.planning.success import SuccessPlanner
from allotment.tasks.mixture import Problem, load_mixture

SIZES = (1, 4, 8, 16)
HISTORIES = (8, 32)
KINDS = ("exact", "last-block", "last-layer")
Batches = list[tuple[list[Problem], tuple[Moments, Moments]]]


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("variance", "cost"))
    parser.add_argument("--regimes", nargs="+", default=["scratchpad", "short"])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.what == "cost":
        cost_in_the_lab()
        cost_at_scale()
        return
    for regime in arguments.regimes:
        for seed in arguments.seeds:
            variance(GradientVarianceConfig(regime=regime, seed=seed), arguments.kinds)


def variance(config: GradientVarianceConfig, kinds: Sequence[SketchName]) -> None:
    """One table: arms down, histories across."""
    lab, pool = load_lab(config.regime), load_mixture().pool
    order = np.random.default_rng(config.seed).permutation(len(pool))  # as in measure()
    rows = order[: config.batches * config.prompts].reshape(config.batches, config.prompts)
    batches: Batches = []
    for number, batch in enumerate(rows):
        problems = [pool[i] for i in batch]
        batches.append((problems, measured(lab, problems, config, number).halves))
    arms: dict[str, tuple[str, str, int]] = {"oracle": ("oracle", kinds[0], 0), "vip": ("vip", kinds[0], 0)}
    for kind in kinds:
        arms |= {f"vip-moments, {kind}, K = {k}": ("vip-moments", kind, k) for k in SIZES}
    pasts = {
        kind: list(past_steps(lab, pool, max(HISTORIES), config.seed, sketch_named(kind, lab, max(SIZES), config.seed)))
        for kind in kinds
    }
    print(
        f"\n{config.regime}, seed {config.seed}\n\n| planner | " + " | ".join(f"{h} past rollouts" for h in HISTORIES)
    )
    print("|---|" + "--:|" * len(HISTORIES))
    for arm, (name, kind, size) in arms.items():
        cells = []
        for history in HISTORIES:
            steps = pasts[kind][: len(pasts[kind]) * history // max(HISTORIES)]
            planner = taught(name, lab, pool, config, [with_sketches(step, size) for step in steps])
            ratios = [ratio(planner, *batch, config) for batch in batches]
            cells.append(f"{np.mean(ratios):.3f} ({np.std(ratios, ddof=1) / np.sqrt(len(ratios)):.3f})")
        print(f"| {arm} | " + " | ".join(cells) + " |", flush=True)


def with_sketches(step: PastStep, size: int) -> PastStep:
    """The step with the first ``size`` numbers of each sketch."""
    return PastStep(step.ids, step.rollouts, step.scores_NK[:, :size] if size and step.scores_NK is not None else None)


def taught(
    name: str, lab: Lab, pool: Sequence[Problem], config: GradientVarianceConfig, steps: Sequence[PastStep]
) -> SuccessPlanner:
    """A new planner that has seen the steps."""
    budget = config.rollouts_per_prompt * config.prompts
    planner = make_planner(name, lab, pool, budget=budget, bounds=config.bounds, seed=config.seed)
    assert isinstance(planner, SuccessPlanner)
    for step in steps:
        step.teach(planner)
    return planner


def ratio(
    planner: SuccessPlanner, problems: list[Problem], halves: tuple[Moments, Moments], config: GradientVarianceConfig
) -> float:
    """Variance of the planner's allocation relative to uniform."""
    plan = planner.ask([p.id for p in problems])
    planner.cancel(plan)
    uniform = np.full(len(problems), config.rollouts_per_prompt)
    return float(sum(h.variance(plan.counts).sum() for h in halves) / sum(h.variance(uniform).sum() for h in halves))


def cost_in_the_lab() -> None:
    """Median milliseconds of a whole step without sketches, and of sketches of its 128 rollouts."""
    trainer = Trainer(TrainConfig(planner="vip"))
    step = median_ms(trainer.step, range(1, 41))
    lab, problems = trainer.lab, trainer.batch(1)
    rollouts = lab.rollouts(problems, np.full(len(problems), 8), seeded_generator(0))
    hidden = lab.policy.hidden(lab.encode(problems).repeat(rollouts.group_N), rollouts.tokens_NT)[0].detach()
    logits = lab.policy.head(hidden).detach()
    print(f"\nA step of {len(rollouts)} rollouts without sketches: {step:.1f} ms.\n")
    print("| sketch | K | ms | share of the step |\n|---|--:|--:|--:|")

    def row(name: str, size: int, run: Callable[[int], object]) -> None:
        took = median_ms(run, range(20))
        print(f"| {name} | {size} | {took:.2f} | {took / step:.1%} |", flush=True)

    for size in SIZES:
        pairs = SketchDirections.random(size, lab.policy.size.vocabulary, lab.policy.size.width)
        given = (logits, hidden, rollouts.tokens_NT, rollouts.mask_NT, pairs)
        row("last layer, from given logits", size, lambda _, given=given: last_layer_scores(*given))
        sketch: Sketch = sketch_named("last-layer", lab, size, 0)
        row("last layer, with a forward pass", size, lambda _, sketch=sketch: sketch(problems, rollouts))
    for kind in ("last-block", "exact"):
        sketch = sketch_named(kind, lab, max(SIZES), 0)
        row(kind, max(SIZES), lambda _, sketch=sketch: sketch(problems, rollouts))


def cost_at_scale(vocabulary: int = 151_936, width: int = 1_536, tokens: int = 256) -> None:
    """The last-layer sketch beside the work that a trainer does with the same logits anyway."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, tokens, width, generator=generator)
    matrix = torch.randn(vocabulary, width, generator=generator) / width**0.5
    drawn, mask = torch.randint(0, vocabulary, (1, tokens), generator=generator), torch.ones(1, tokens)
    logits = hidden @ matrix.T
    print(f"\nVocabulary {vocabulary:,}, width {width:,}, {tokens} tokens, float32, one thread.\n")
    print("| work | ms |\n|---|--:|")
    works: dict[str, Callable[[int], object]] = {
        "logits (the output matrix)": lambda _: hidden @ matrix.T,
        "log-softmax and gather": lambda _: logits.log_softmax(-1).gather(2, drawn[:, :, None]),
    }
    for size in SIZES:
        pairs = SketchDirections.random(size, vocabulary, width)
        given = (logits, hidden, drawn, mask, pairs)
        works[f"last-layer sketch, K = {size}"] = lambda _, given=given: last_layer_scores(*given)
    for name, work in works.items():
        print(f"| {name} | {median_ms(work, range(5)):.0f} |", flush=True)


def median_ms(run: Callable[[int], object], calls: Sequence[int]) -> float:
    """Median wall time of a call, the first fifth left out."""
    seconds = []
    for call in calls:
        started = time.perf_counter()
        run(call)
        seconds.append(time.perf_counter() - started)
    return 1000 * float(np.median(seconds[len(seconds) // 5 :]))


if __name__ == "__main__":
    main()
