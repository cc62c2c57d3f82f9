"""Jackpot under a small actor: ``python benchmarks/objectives_jackpot.py OUT_DIR [--parts gradient learning step]``.

``gradient``: what each correction makes of the gradient, against exact ones, at the shipped policies (regime short).
``learning``: success of the trained policy from the small actor's rollouts, paired by seed, equal rollouts.
``step``: CPU time of a step with and without the gate, alternating.
Runs that are finished are not run again. Results are OUT_DIR/PART.json; tables are printed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from torch import Tensor

from allotment.lab.checkpoint import load_lab, shipped_policy
from allotment.lab.config import TrainConfig
from allotment.lab.generation import Lab, seeded_generator
from allotment.lab.train import Trainer
from allotment.learning import advantage_estimator, rollout_weights
from allotment.learning.record import TokenRecord
from allotment.methods.objectives.jackpot import Jackpot
from allotment.run_logs.directory import RunDirectory
from allotment.run_logs.files import read_log
from allotment.tasks.mixture import Problem, load_mixture

Part = Literal["gradient", "learning", "step"]
INFINITE = float("inf")
CORRECTIONS: dict[str, Jackpot | None] = {
    "none": None,
    "TIS, c1 = 2": Jackpot(lam=0),
    "importance sampling, not truncated": Jackpot(lam=0, c1=INFINITE),
    "Jackpot, rate .95, c1 = 2": Jackpot(normaliser="exact"),
    "Jackpot, rate .95, not truncated": Jackpot(c1=INFINITE, normaliser="exact"),
    "Jackpot, rate .8, not truncated": Jackpot(rate=0.8, c1=INFINITE, normaliser="exact"),
    "Jackpot, rate .95, not truncated, average over accepted": Jackpot(
        c1=INFINITE, normaliser="exact", average="accepted"
    ),
}
SMALL = {"actor": "small", "objective": ("jackpot",)}
ARMS: dict[str, dict[str, Any]] = {
    "on-policy": {},
    "no correction": {"actor": "small"},
    "TIS": SMALL | {"objective_settings": {"jackpot": {"lam": 0}}},
    "Jackpot .95": SMALL | {"objective_settings": {"jackpot": {"normaliser": "exact"}}},
    "Jackpot .8": SMALL | {"objective_settings": {"jackpot": {"rate": 0.8, "normaliser": "exact"}}},
    "Jackpot .95, accepted": SMALL
    | {"objective_settings": {"jackpot": {"normaliser": "exact", "average": "accepted"}}},
}


@dataclass(frozen=True)
class Arguments:
    """What to measure."""

    out: Annotated[Path, tyro.conf.Positional]
    """Where runs and results go."""
    parts: tuple[Part, ...] = ("gradient", "learning", "step")
    arms: tuple[str, ...] = tuple(ARMS)
    """Of ``learning``."""
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    steps: int = 100
    batches: int = 48
    """Batches of 512 rollouts, for the gradient."""


def gradients(arguments: Arguments) -> list[dict[str, Any]]:
    """Each correction's mean gradient along fixed directions, and the exact ones."""
    trained, actor = load_lab("short"), load_lab("short", shipped_policy("short", "small"))
    problems = list(load_mixture().pool[::12])[:64]
    exact = {name: exact_gradient(trained, actor, problems, policy=name) for name in ("policy", "token")}
    random = torch.randn(32, len(exact["token"]), generator=seeded_generator(0))
    rows = []
    for name, jackpot in CORRECTIONS.items():
        seen, shown = [], []
        for batch in range(arguments.batches):
            gradient, metrics = sampled_gradient(trained, actor, problems, jackpot, seeded_generator(1, batch))
            seen.append(gradient)
            shown.append(metrics)
        seen_BP = torch.stack(seen)
        difference_BK = (seen_BP - exact["token"]) @ torch.cat([random, exact["token"][None]]).T
        z_K = difference_BK.mean(0) / difference_BK.std(0) * arguments.batches**0.5
        row = {"correction": name, "largest_z": float(z_K.abs().max()), "rms_z": float(z_K.square().mean().sqrt())}
        for kind, gradient in exact.items():
            along_B = seen_BP @ gradient / gradient.square().sum()
            row[kind] = [float(along_B.mean()), float(along_B.std() / arguments.batches**0.5)]
        row["variance"] = float(seen_BP.var(0).sum() / exact["policy"].square().sum())
        rows.append(row | {key: float(np.mean([m[key] for m in shown])) for key in shown[0]})
        print(f"gradient: {name}: {row['policy']}", flush=True)
    cosine = torch.cosine_similarity(exact["token"], exact["policy"], dim=0).item()
    print(f"cosine of the gradient corrected token by token and the policy gradient: {cosine:.3f}")
    return [*rows, {"cosine": cosine}]


def exact_gradient(trained: Lab, actor: Lab, problems: Sequence[Problem], policy: str) -> Tensor:
    """[P] the gradient of mean success: of the policy, or with all tokens but one as the actor draws them."""
    rows = [trained.tokenizer.encode_answer(p.answer) for p in problems]
    length = max(map(len, rows))
    tokens_NT = torch.tensor([row + [trained.tokenizer.pad] * (length - len(row)) for row in rows])
    given = (problems, torch.arange(len(problems)), tokens_NT, tokens_NT != trained.tokenizer.pad)
    own_NT = trained.log_probs(*given)
    if policy == "policy":
        success = own_NT.sum(1).exp().mean()
    else:
        with torch.no_grad():
            actor_NT = actor.log_probs(*given)
        others_NT = (actor_NT.sum(1, keepdim=True) - actor_NT).exp()
        success = torch.where(given[3], others_NT * own_NT.exp(), 0.0).sum(1).mean()
    return flat(torch.autograd.grad(success, list(trained.policy.parameters())))


def sampled_gradient(
    trained: Lab, actor: Lab, problems: list[Problem], jackpot: Jackpot | None, generator: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    """[P] the estimate from 8 rollouts of the actor a prompt; success is the one right string, as in the exact ones."""
    rollouts = actor.rollouts(problems, np.full(len(problems), 8), generator)
    given = (problems, rollouts.group_N, rollouts.tokens_NT, rollouts.mask_NT)
    right = [problems[g].answer for g in rollouts.group_N.tolist()]
    is_right = [answer == wanted for answer, wanted in zip(rollouts.answers_N, right, strict=True)]
    advantages_N = advantage_estimator("rloo")(torch.tensor(is_right).float(), rollouts.group_N)
    outputs = trained.outputs(*given)
    with torch.no_grad():
        drawn = actor.outputs(*given)
    record = TokenRecord(
        log_probs_NT=outputs.log_probs_NT,
        old_log_probs_NT=outputs.log_probs_NT.detach(),
        advantages_N=advantages_N,
        mask_NT=rollouts.mask_NT,
        group_ids_N=rollouts.group_N,
        rollout_log_probs_NT=rollouts.log_probs_NT,
        distribution_NTV=outputs.distribution_NTV,
        rollout_distribution_NTV=drawn.distribution_NTV,
        tokens_NT=rollouts.tokens_NT,
        uniforms_NT=torch.rand(rollouts.tokens_NT.shape, generator=generator),
    )
    weights_NT = rollout_weights(rollouts.group_N, rollouts.mask_NT, length="sum") * advantages_N[:, None]
    metrics: dict[str, float] = {}
    if jackpot is not None:
        factors = jackpot.factors(record)
        weights_NT, metrics = weights_NT * factors.values_NT, {k: v.item() for k, v in factors.metrics.items()}
    surrogate = (weights_NT * outputs.log_probs_NT).sum()
    return flat(torch.autograd.grad(surrogate, list(trained.policy.parameters()))), metrics


def flat(parts: Sequence[Tensor]) -> Tensor:
    """[P] all parts one after another."""
    return torch.cat([part.flatten() for part in parts])


def learning(arguments: Arguments) -> list[dict[str, Any]]:
    """Every arm at every seed; seeds outermost, so that what is there is always paired."""
    rows = []
    for seed in arguments.seeds:
        for arm in arguments.arms:
            steps = {"steps": arguments.steps, "evaluate_every": arguments.steps // 2}
            config = TrainConfig(planner="uniform", seed=seed, **steps, **ARMS[arm])
            path = arguments.out / f"{arm.replace(' ', '_')}-s{seed}"
            if not _is_finished(path, arguments.steps):
                is_new = not (path / "config.json").exists()
                directory = RunDirectory.create(path, config) if is_new else RunDirectory.resume(path, config)
                Trainer(config).run(directory)
            log = read_log(path / "metrics.jsonl")
            rows.append({"arm": arm, "seed": seed, **_last(log)})
            print(f"learning: {arm}, seed {seed}: {rows[-1]['pool_success']:.4f}", flush=True)
    return rows


def _is_finished(path: Path, steps: int) -> bool:
    return (path / "checkpoint.safetensors").exists() and read_log(path / "metrics.jsonl")[-1]["step"] == steps


def _last(log: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Success at the middle and the end, and means over steps of what the gate and the actor log."""
    middle, end = [row for row in log if "pool_success" in row][-2:]
    kept = {"pool_success": end["pool_success"], "held_out_success": end["held_out_success"]}
    kept |= {"middle_pool_success": middle["pool_success"], "start_pool_success": log[0]["pool_success"]}
    names = [name for name in log[-1] if name.startswith(("jackpot", "actor"))]
    return kept | {name: float(np.mean([row[name] for row in log[1:]])) for name in ("success", *names)}


def step_time(arguments: Arguments) -> list[dict[str, Any]]:
    """Median CPU seconds of a step, arms taking turns."""
    arms = {
        "current": {},
        "current, Jackpot": {"objective": ("jackpot",)},
        "current, Jackpot with exact Z": ARMS["Jackpot .95"] | {"actor": "current"},
        "small": {"actor": "small"},
        "small, TIS": ARMS["TIS"],
        "small, Jackpot": {"actor": "small", "objective": ("jackpot",)},
        "small, Jackpot with exact Z": ARMS["Jackpot .95"],
    }
    trainers = {arm: Trainer(TrainConfig(planner="uniform", **changes)) for arm, changes in arms.items()}
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    for step in range(1, 41):
        for arm, trainer in trainers.items():
            started = time.process_time()
            trainer.step(step)
            seconds[arm].append(time.process_time() - started)
    gates = {arm: _gate_seconds(trainer) for arm, trainer in trainers.items() if trainer.learner.objective.gates}
    return [
        {"arm": a, "milliseconds": 1e3 * np.median(s[5:]), "gate": 1e3 * gates.get(a, 0)} for a, s in seconds.items()
    ]


def _gate_seconds(trainer: Trainer) -> float:
    """Median CPU seconds of the gate alone on a batch."""
    problems = trainer.batch(1)
    rollouts = trainer.generate(problems, np.full(len(problems), 8), seeded_generator(0))
    record = trainer.learner._record(problems, rollouts, trainer.advantages(rollouts), None)
    seconds = []
    for _ in range(40):
        started = time.process_time()
        trainer.learner.objective.gates["jackpot"].factors(record)
        seconds.append(time.process_time() - started)
    return float(np.median(seconds))


def show_gradients(rows: list[dict[str, Any]]) -> None:
    """A line a correction."""
    print("\n| correction | along the gradient corrected by token (se) | largest z | along the policy gradient (se) |")
    print("|---|--:|--:|--:|")
    for row in rows[:-1]:
        along = [f"{row[kind][0]:.4f} ({row[kind][1]:.4f})" for kind in ("token", "policy")]
        print(f"| {row['correction']} | {along[0]} | {row['largest_z']:.1f} | {along[1]} |")
    print("\n| correction | rejected | lambda | KL before | after | truncated | variance / squared gradient |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for row in rows[:-1]:
        names = ("rejected", "lambda", "kl_before", "kl_after", "truncated", "variance")
        print(f"| {row['correction']} | {' | '.join(f'{row[n]:.4f}' if n in row else '' for n in names)} |")


def show_learning(rows: list[dict[str, Any]]) -> None:
    """A line an arm, differences paired by seed."""
    by_arm = {arm: [row for row in rows if row["arm"] == arm] for arm in dict.fromkeys(row["arm"] for row in rows)}
    print(
        "\n| arm | pool, middle | pool, end | to no correction | to TIS | held out | of the actor | KL before | after |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    for arm, mine in by_arm.items():
        cells = [_mean_se([row[name] for row in mine]) for name in ("middle_pool_success", "pool_success")]
        for other in ("no correction", "TIS"):
            other_S = {row["seed"]: row["pool_success"] for row in by_arm.get(other, []) if arm != other}
            differences = [r["pool_success"] - other_S[r["seed"]] for r in mine if r["seed"] in other_S]
            cells.append(_mean_se(differences, sign="+") if differences else "")
        cells += [_mean_se([row[name] for row in mine]) for name in ("held_out_success", "success")]
        for name in ("jackpot_kl_before", "jackpot_kl_after"):
            cells.append(_mean_se([row[name] for row in mine]) if name in mine[0] else "")
        print(f"| {arm} | {' | '.join(cells)} |")


def _mean_se(values: Sequence[float], sign: str = "") -> str:
    error = np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{np.mean(values):{sign}.4f} ({error:.4f})"


def show_steps(rows: list[dict[str, Any]]) -> None:
    """A line an arm."""
    print("\n| arm | CPU ms a step | of which the gate |\n|---|--:|--:|")
    for row in rows:
        print(f"| {row['arm']} | {row['milliseconds']:.1f} | {row['gate']:.2f} |")


PARTS: dict[Part, tuple[Callable[..., list[dict[str, Any]]], Callable[..., None]]] = {
    "gradient": (gradients, show_gradients),
    "learning": (learning, show_learning),
    "step": (step_time, show_steps),
}


def main(arguments: Arguments) -> None:
    """Measure, write, print."""
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for part in arguments.parts:
        measure, show = PARTS[part]
        rows = measure(arguments)
        (arguments.out / f"{part}.json").write_text(json.dumps(rows, indent=1))
        show(rows)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
