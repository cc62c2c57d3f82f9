"""How long every planner takes to plan a step and to learn from it. Prints a Markdown table.

    OMP_NUM_THREADS=1 python benchmarks/planning_time.py                 # a minute
    OMP_NUM_THREADS=1 python benchmarks/planning_time.py CoBA Knapsack   # names that contain one of these

Q = 512 prompts get C = 4,096 rollouts a step, from a pool of 4,096 prompts that are drawn anew at each step; planners
that choose among more candidates than they train on are asked for all 4,096. Choosing prompts is also measured for 256
candidates and 512 rollouts. Rewards are 0/1. All rounds of a step are
added up. Medians over the steps after the warm-up, in milliseconds: wall-clock time and time of this process. The
target is 20 ms for ``ask`` and ``tell`` together.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from allotment import VIP, Uniform
from allotment.methods.planners.coba_rl import CoBARL
from allotment.methods.planners.dapo import DAPO
from allotment.methods.planners.dynamic_pruning import DynamicPruning
from allotment.methods.planners.greso import GRESO
from allotment.methods.planners.gvm import GVM
from allotment.methods.planners.knapsack import Knapsack
from allotment.methods.planners.mopps import MoPPS
from allotment.methods.planners.optpo import OptPO
from allotment.methods.planners.reinforce_ada import ReinforceAda
from allotment.methods.planners.reinforce_ada_est import ReinforceAdaEst
from allotment.planning import InverseAccuracy, InverseVariance, RidgeVIP
from allotment.prediction import DiscountedCounts, default_predictor

PROMPTS, BUDGET, POOL, SKETCHES = 512, 4096, 4096, 4
TARGET_MS = 20.0


@dataclass(frozen=True)
class Case:
    """A planner to measure."""

    name: str
    make: Callable[[], Any]
    asked: int = PROMPTS
    """Prompts it is asked for."""
    told: tuple[str, ...] = ()
    """What ``tell`` gets beside rewards: ``"scores"``, ``"answers"``, ``"lengths"``."""


def embedded() -> dict[str, Any]:
    """An embedding of every prompt of the pool."""
    return {"embeddings": np.random.default_rng(0).normal(size=(POOL, 384)), "ids": list(range(POOL))}


def joint(budget: int, **about: Any) -> VIP:
    """Prompts, rollouts and baseline decided together."""
    return VIP(budget=budget, estimator="shrinkage", choose="prompts", **about)


CASES = [
    Case("Uniform, counts", lambda: Uniform(budget=BUDGET, predictor=DiscountedCounts())),
    Case("Uniform", lambda: Uniform(budget=BUDGET)),
    Case("InverseAccuracy, counts", lambda: InverseAccuracy(budget=BUDGET, predictor=DiscountedCounts())),
    Case("InverseVariance, counts", lambda: InverseVariance(budget=BUDGET, predictor=DiscountedCounts())),
    Case("VIP, counts", lambda: VIP(budget=BUDGET, predictor=DiscountedCounts())),
    Case("VIP", lambda: VIP(budget=BUDGET)),
    Case("VIP, embeddings", lambda: VIP(budget=BUDGET, **embedded())),
    Case("VIP, gradient moments", lambda: VIP(budget=BUDGET, price="gradient_moments"), told=("scores",)),
    Case("VIP, two rounds", lambda: VIP(budget=BUDGET, rounds=2)),
    Case("VIP, prompts chosen", lambda: joint(512, **embedded()), asked=256),
    Case("VIP, prompts chosen, large", lambda: joint(BUDGET, **embedded()), asked=POOL),
    Case("VIP.paper", lambda: VIP.paper(budget=BUDGET, **embedded())),
    Case("RidgeVIP", lambda: RidgeVIP(budget=BUDGET, **embedded())),
    Case("CoBARL", lambda: CoBARL(budget=BUDGET)),
    Case("CoBARL, default_predictor", lambda: CoBARL(budget=BUDGET, predictor=default_predictor())),
    Case("Knapsack", lambda: Knapsack(budget=BUDGET)),
    Case("GVM", lambda: GVM(budget=BUDGET), told=("scores",)),
    Case("MoPPS", lambda: MoPPS(budget=BUDGET, trained_prompts=PROMPTS), asked=POOL),
    Case("DynamicPruning", lambda: DynamicPruning(budget=BUDGET)),
    Case("ReinforceAda", lambda: ReinforceAda(budget=BUDGET)),
    Case("ReinforceAdaEst", lambda: ReinforceAdaEst(budget=BUDGET)),
    Case("DAPO", lambda: DAPO(budget=BUDGET, trained_prompts=PROMPTS), asked=4 * PROMPTS),
    Case("GRESO", lambda: GRESO(budget=BUDGET, trained_prompts=PROMPTS), asked=2 * PROMPTS),
    Case("OptPO", lambda: OptPO(budget=BUDGET), told=("answers",)),
]


class Clock:
    """Wall and process seconds spent in calls, summed up."""

    def __init__(self) -> None:
        self.seconds = np.zeros(2)

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The call's result; its time is added."""
        wall, cpu = time.perf_counter(), time.process_time()
        result = function(*args, **kwargs)
        self.seconds += time.perf_counter() - wall, time.process_time() - cpu
        return result


def measure(case: Case, *, warm: int, steps: int) -> np.ndarray:
    """[steps, 4] milliseconds of each step: ask wall and CPU, tell wall and CPU."""
    random = np.random.default_rng(0)
    p_M = random.beta(0.7, 0.7, POOL)
    planner, rows = case.make(), []
    for _ in range(warm + steps):
        ids = random.permutation(POOL)[: case.asked].tolist()
        ask, tell = Clock(), Clock()
        while True:
            plan = ask(planner.ask, ids)
            groups = plan.group_ids()
            success_N = random.random(plan.budget) < p_M[groups]
            extras = {
                "scores": random.normal(size=(plan.budget, SKETCHES)),
                "answers": ["right" if success else "wrong" for success in success_N],
                "lengths": random.integers(1, 500, plan.budget),
            }
            tell(planner.tell, plan, success_N.astype(float), groups, **{name: extras[name] for name in case.told})
            if planner.done:
                break
        rows.append([*ask.seconds, *tell.seconds])
    return 1e3 * np.array(rows[warm:])


def main() -> None:
    """Measure everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="measure only planners whose name contains one of these")
    parser.add_argument("--warm", type=int, default=16, help="steps before the measurement")
    parser.add_argument("--steps", type=int, default=25, help="steps measured")
    options = parser.parse_args()
    print("| planner | prompts asked | ask ms | CPU | tell ms | CPU | step CPU | target |")
    print("|---|---:|---:|---:|---:|---:|---:|---|")
    for case in CASES:
        if options.names and not any(name in case.name for name in options.names):
            continue
        times = measure(case, warm=options.warm, steps=options.steps)
        cells = " | ".join(f"{ms:.2f}" for ms in np.median(times, axis=0))
        step = float(np.median(times[:, 1] + times[:, 3]))
        verdict = "met" if step < TARGET_MS else "missed"
        print(f"| {case.name} | {case.asked:,} | {cells} | {step:.2f} | {verdict} |", flush=True)


if __name__ == "__main__":
    main()
