"""One planner for a cluster: driver time a step and bytes moved, simulated on Ray. Prints Markdown tables.

    python benchmarks/verl_scale.py                  # about 6 minutes on two cores, 8 GB
    python benchmarks/verl_scale.py --actors 64 --prompts 1000000 --rollouts 4096 --steps 50

64 actors serve a million prompts by turns, 512 a step; the driver asks VIP for 4,096 rollouts, hands each actor its
counts, gets the rewards back (Bernoulli, a success probability for each prompt) and tells them: what a driver of verl
does, without the model. Then the same planner alone: larger steps, until one takes five seconds; and prompts that are
asked one by one, as an asynchronous trainer's refills are. ``CPU`` is processor time of the driver, which others on the
machine disturb less. One thread.
"""

from __future__ import annotations

import argparse
import pickle
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import ray

from allotment.planning import VIP
from allotment.planning.carry_over import CarryOver

MEAN = 8


def success_probability(prompts: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    """[Q] fixed for each prompt, half of them near 0 or 1."""
    uniform = (np.asarray(prompts, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(11)) / 2.0**53
    return np.asarray((1 + np.tanh(6 * uniform - 3)) / 2)


@ray.remote(num_cpus=0)
class Server:
    """Serves its share of the prompts in turn, and their rewards."""

    def __init__(self, number: int, servers: int, prompts: int) -> None:
        self.own = np.arange(number, prompts, servers)
        self.place, self.random = 0, np.random.default_rng(number)

    def serve(self, count: int) -> list[str]:
        """The names of the next prompts."""
        taken = [f"math/{self.own[(self.place + i) % len(self.own)]}" for i in range(count)]
        self.place += count
        return taken

    def generate(self, prompts: list[str], counts: list[int]) -> bytes:
        """A byte a rollout, in order of the prompts."""
        p = np.repeat(success_probability([int(name[5:]) for name in prompts]), counts)
        return (self.random.random(len(p)) < p).astype(np.uint8).tobytes()


class Clock:
    """Wall and processor seconds of named parts of a step."""

    def __init__(self) -> None:
        self.wall: dict[str, list[float]] = {}
        self.cpu: dict[str, list[float]] = {}

    def __call__(self, name: str, function: Callable[[], Any]) -> Any:
        """What ``function`` returns, timed."""
        wall, cpu = time.perf_counter(), time.process_time()
        result = function()
        self.wall.setdefault(name, []).append(time.perf_counter() - wall)
        self.cpu.setdefault(name, []).append(time.process_time() - cpu)
        return result

    def row(self, name: str) -> str:
        """Medians in milliseconds, and the slowest."""
        wall, cpu = self.wall[name], self.cpu[name]
        return f"{statistics.median(wall) * 1e3:.1f} | {max(wall) * 1e3:.1f} | {statistics.median(cpu) * 1e3:.1f}"


def simulate(planner: VIP, actors: int, prompts: int, rollouts: int, steps: int) -> None:
    """The cluster: what one step costs the driver."""
    carry, clock, moved = CarryOver(planner, prompts=rollouts // MEAN), Clock(), []
    servers: list[Any] = [Server.remote(number, actors, prompts) for number in range(actors)]  # type: ignore[attr-defined]
    share = rollouts // MEAN // actors
    for _ in range(steps):
        served = clock("fetch prompts", lambda: ray.get([s.serve.remote(share) for s in servers]))
        (plan,) = clock("ask", lambda served=served: carry.ask([name for names in served for name in names]))
        counts = plan.counts.reshape(actors, share).tolist()
        orders = list(zip(served, counts, strict=True))
        came = clock(
            "send counts, get rewards",
            lambda orders=orders: ray.get([s.generate.remote(*o) for s, o in zip(servers, orders, strict=True)]),
        )
        rewards, groups = np.frombuffer(b"".join(came), dtype=np.uint8).astype(float), plan.group_ids()
        assert len(rewards) == rollouts
        clock("tell", lambda plan=plan, rewards=rewards, groups=groups: planner.tell(plan, rewards, groups))
        moved.append(sum(len(pickle.dumps(x)) for x in (*served, *orders, *came)))
    print(f"\n{actors} actors, {prompts:,} prompts, {rollouts:,} rollouts a step, {steps} steps, "
          f"{statistics.mean(moved) / 1e3:.0f} kB moved a step\n")  # fmt: skip
    print("| part | median ms | slowest ms | CPU ms |\n|---|---|---|---|")
    for name in clock.wall:
        print(f"| {name} | {clock.row(name)} |")


def filled(prompts: int, budget: int, *, chunk: int = 65_536) -> VIP:
    """A planner that has seen every prompt once."""
    planner, random = VIP(budget=budget, bounds=(3, 32)), np.random.default_rng(0)
    for first in range(0, prompts, chunk):
        numbers = np.arange(first, min(first + chunk, prompts))
        trials = np.full(len(numbers), MEAN)
        successes = random.binomial(trials, success_probability(numbers))
        planner.predictor.observe([f"math/{i}" for i in numbers], successes, trials)
    return planner


def larger_steps(planner: VIP, prompts: int, limit: float = 5.0) -> None:
    """The planner alone, four times as many prompts at each line, until a step takes ``limit`` seconds of processor."""
    print("\n| prompts a step | rollouts | ask ms, median | slowest | CPU | tell ms, median | slowest | CPU |")
    print("|---|---|---|---|---|---|---|---|")
    random, size = np.random.default_rng(1), 512
    while size <= prompts:
        clock = Clock()
        for _ in range(5):
            numbers = random.choice(prompts, size=size, replace=False)
            ids = [f"math/{i}" for i in numbers]
            plan = clock("ask", lambda ids=ids, size=size: planner.ask(ids, budget=MEAN * size))
            p = np.repeat(success_probability(numbers), plan.counts)
            rewards, groups = (random.random(len(p)) < p).astype(float), plan.group_ids()
            clock("tell", lambda plan=plan, rewards=rewards, groups=groups: planner.tell(plan, rewards, groups))
        print(f"| {size:,} | {MEAN * size:,} | {clock.row('ask')} | {clock.row('tell')} |", flush=True)
        if statistics.median(clock.cpu["ask"]) + statistics.median(clock.cpu["tell"]) > limit:
            return
        size *= 4


def one_by_one(planner: VIP, prompts: int, block: int = 512, asked: int = 1024) -> None:
    """Single prompts with a carried budget."""
    carry, clock, random = CarryOver(planner, prompts=block), Clock(), np.random.default_rng(2)
    for plan in carry.ask([f"math/{number}" for number in range(block)]):  # the company of the first
        planner.cancel(plan)
    for number in random.choice(prompts - block, size=asked, replace=False) + block:
        (plan,) = clock("ask", lambda number=number: carry.ask([f"math/{number}"]))
        planner.cancel(plan)
    print("\n| prompts asked one by one | median ms | slowest ms | CPU ms |\n|---|---|---|---|")
    print(f"| blocks of {block} | {clock.row('ask')} |")


def checkpoint(planner: VIP) -> None:
    """What a checkpoint of the planner costs."""
    with tempfile.TemporaryDirectory() as folder:
        path, started = Path(folder) / "planner.safetensors", time.perf_counter()
        planner.save(path)
        print(f"\nCheckpoint: {path.stat().st_size / 1e6:.0f} MB, {time.perf_counter() - started:.1f} s")


def main() -> None:
    """Run all parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--actors", type=int, default=64)
    parser.add_argument("--prompts", type=int, default=1_000_000)
    parser.add_argument("--rollouts", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--no-ray", action="store_true", help="the planner alone")
    given = parser.parse_args()
    started = time.perf_counter()
    planner = filled(given.prompts, given.rollouts)
    print(f"{given.prompts:,} prompts seen once: {time.perf_counter() - started:.0f} s")
    if not given.no_ray:
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        simulate(planner, given.actors, given.prompts, given.rollouts, given.steps)
        ray.shutdown()
    larger_steps(planner, given.prompts)
    one_by_one(planner, given.prompts)
    checkpoint(planner)


if __name__ == "__main__":
    main()
