"""What share of a step's gradient variance is between prompts, on SmolLM2 at the fixed policy, and what a belief saves.

    python benchmarks/smollm2_gradients.py MODEL_FOLDER runs/smollm2-gradients [--prompts 6] [--rollouts 64]

Of each level of benchmarks/smollm2_data.py the first prompts; new rollouts of each, whose scores are sketched in two
matrices: the output matrix (``last-layer``) and the last one of the last block (``last-block``). A level is a piece,
as there. Then, as ``allotment gradient-variance`` does in the lab, steps are made of these prompts and judged by the
measured moments: how far is a step's gradient from the mean gradient of all prompts, because of which prompts it has
(between) and because of their rollouts and baselines (within)?

Beliefs: ``one visit`` has seen the first 8 rollouts of every prompt in the data file, ``first visit`` those of all
prompts but the measured ones, with what is known of a prompt by the views of benchmarks/first_visit.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

import smollm2_data
from allotment.lab.gradient_measurement import Measured, of_prompt
from allotment.lab.step_variance import Judge
from allotment.learning import SketchDirections
from allotment.planning import VIP, Uniform
from allotment.prediction import HierarchicalPredictor
from allotment.state import decode_json, encode_json, load_state, save_state
from allotment.types import FloatArray, Plan
from first_visit import Known, of_smollm2
from smollm2_data import LEVELS, Policy, Questions
from smollm2_generation import Step

KIND = "smollm2-scores"
SKETCHES = 128
MATRICES = ("last-layer", "last-block")
AT_ONCE = 8


class Scores:
    """Sketches of the scores of B prompts' rollouts, filled while they are drawn; makes no backward pass.

    Of the output matrix W the gradient of a token's log-probability is ``(e_a - pi) h^T``. The last matrix of the last
    block adds its output to r, and ``h = norm(r)``: the gradient in r is ``J_norm^T W^T (e_a - pi)``.
    """

    def __init__(self, model: Any, prompts: int, rollouts: int) -> None:
        down = model.model.layers[-1].mlp.down_proj
        sizes = {"last-layer": model.lm_head.weight.shape, "last-block": down.weight.shape}
        self.model = model
        self.directions = {
            name: SketchDirections.random(SKETCHES, *sizes[name], seed=smollm2_data.SEED).to(model.device)
            for name in MATRICES
        }
        self.scores = {name: torch.zeros(prompts, rollouts, SKETCHES, device=model.device) for name in MATRICES}
        self._entered: dict[str, Tensor] = {}
        self._hooks = [
            module.register_forward_pre_hook(lambda _, args, name=name: self._entered.update({name: args[0]}))
            for name, module in (("down", down), ("norm", model.model.norm))
        ]

    def close(self) -> None:
        """Leave the model as it was."""
        for hook in self._hooks:
            hook.remove()

    def add(self, step: Step) -> None:
        """The gradients of the tokens of a step."""
        places = step.rows_M, step.columns_M
        inputs_MI, residual_MH = (self._entered[name][places].float() for name in ("down", "norm"))
        surprise_MV = -step.logits_MV.float().softmax(-1)
        surprise_MV.scatter_add_(1, step.tokens_M[:, None], torch.ones_like(step.tokens_M[:, None], dtype=torch.float))
        outer, inner = (self.directions["last-layer"], self.directions["last-block"])
        layer_MK = (surprise_MV @ outer.outputs_KO.T) * (step.states_MH.float() @ outer.inputs_KI.T)
        gradient_MH = through_norm(surprise_MV @ self.model.lm_head.weight.float(), residual_MH, self.model.model.norm)
        block_MK = (gradient_MH @ inner.outputs_KO.T) * (inputs_MI @ inner.inputs_KI.T)
        for name, part_MK in (("last-layer", layer_MK), ("last-block", block_MK)):
            self.scores[name].index_put_((step.rows_M, step.rollouts_M), part_MK, accumulate=True)


def through_norm(gradient_MH: Tensor, residual_MH: Tensor, norm: Any) -> Tensor:
    """[M, H] the gradient in r from that in ``weight * r / rms(r)``."""
    weighed_MH = gradient_MH * norm.weight.float()
    inverse_M1 = (residual_MH.square().mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt()
    along_M1 = (weighed_MH * residual_MH).mean(-1, keepdim=True)
    return inverse_M1 * (weighed_MH - residual_MH * along_M1 * inverse_M1.square())


def make_piece(policy: Policy, questions: Questions, prompts: int, rollouts: int) -> dict[str, Any]:
    """Rewards [m, R] and scores [m, R, K] of a level's first prompts."""
    rewards, scores = [], {name: [] for name in MATRICES}
    for first in range(0, min(prompts, len(questions.entries)), AT_ONCE):
        rows = range(first, min(first + AT_ONCE, prompts, len(questions.entries)))
        text = f"{smollm2_data.SEED} scores {questions.level.name} {first}"
        seed = int.from_bytes(sha256(text.encode()).digest()[:4], "big")
        kept = Scores(policy.model, len(rows), rollouts)
        try:
            drawn = policy.draw(questions, rows, rollouts, seed, on_tokens=kept.add)
        finally:
            kept.close()
        rewards.append(policy.rewards(questions, rows, drawn))
        for name in MATRICES:
            scores[name].append(kept.scores[name].cpu().numpy())
    ids = [f"{questions.level.name}/{row}" for row in range(sum(map(len, rewards)))]
    return {"ids": encode_json(ids), "rewards": np.concatenate(rewards)} | {
        name: np.concatenate(parts) for name, parts in scores.items()
    }


def measured(made: Sequence[dict[str, Any]], known: Known, matrix: str) -> Measured:
    """The moments of all prompts; their success probability is the share over the new rollouts and the file's.

    That share stands for p in the gradients and in the variance of the reward, whose bias is 1 in 80.
    """
    successes, trials = known.judged_by
    parts = []
    for piece in made:
        for row, prompt in enumerate(decode_json(piece["ids"])):
            place = known.ids.index(prompt)
            rewards_N = piece["rewards"][row]
            share = (successes[place] + rewards_N.sum()) / (trials[place] + len(rewards_N))
            scores_NK = torch.from_numpy(piece[matrix][row].astype(np.float64) / np.sqrt(SKETCHES))
            order = np.random.default_rng(place).permutation(len(rewards_N))  # both halves from all of them
            parts.append(of_prompt(prompt, float(share), rewards_N[order], scores_NK[torch.from_numpy(order)]))
    return Measured.joined(parts)


@dataclass(frozen=True)
class Belief:
    """What a planner has seen and knows of the prompts."""

    name: str
    view: str
    own_visit: bool

    def predictor(self, known: Known, pool: Sequence[str], steps_of: int = 32) -> HierarchicalPredictor:
        """Fed in a random order, ``steps_of`` prompts a step."""
        vectors = known.vectors(self.view)
        predictor = HierarchicalPredictor(vectors, ids=None if vectors is None else known.ids)
        seen = np.array([self.own_visit or prompt not in set(pool) for prompt in known.ids])
        order = np.random.default_rng(0).permutation(np.flatnonzero(seen))
        for rows in np.split(order, range(steps_of, len(order), steps_of)):
            predictor.observe([known.ids[r] for r in rows], known.successes_2M[0, rows], known.trials_2M[0, rows])
        return predictor


BELIEFS = (
    Belief("first visit, nothing", "nothing", False),
    Belief("first visit, siblings", "siblings", False),
    Belief("first visit, embedding + counted", "embedding + counted", False),
    Belief("first visit, confidence", "confidence", False),
    Belief("first visit, hidden", "hidden", False),
    Belief("one visit, nothing", "nothing", True),
    Belief("one visit, siblings", "siblings", True),
)
DESIGNS: dict[str, Callable[[HierarchicalPredictor, int], tuple[Any, int]]] = {
    "16 x 8, belief": lambda p, pool: (Uniform(budget=128, predictor=p, estimator="shrinkage", bounds=(1, 32)), 16),
    "vip 16 x 8": lambda p, pool: (VIP(budget=128, predictor=p, bounds=(2, 32)), 16),
    "vip 16 x 8, belief": lambda p, pool: (VIP(budget=128, predictor=p, estimator="shrinkage", bounds=(1, 32)), 16),
    "64 x 2, belief": lambda p, pool: (
        Uniform(budget=128, predictor=p, estimator="shrinkage", bounds=(1, 32)), 64),
    "joint": lambda p, pool: (
        VIP(budget=128, predictor=p, estimator="shrinkage", choose="prompts", bounds=(1, 32)), pool // 2),
}  # fmt: skip
"""Planner and number of candidates, of which joint chooses among half of the prompts there are."""


def table(pool: Measured, known: Known, beliefs: Sequence[Belief], steps: int) -> str:
    """Markdown: between and within of each design and belief, relative to uniform 16 x 8 under RLOO."""
    judge = Judge(pool)
    unit = judge.uniform(16, 8)
    lines = ["| belief | design | between | within | total (se) |", "|---|---|--:|--:|--:|"]
    for name, prompts, rollouts in (("uniform", 16, 8), ("uniform", 64, 2), ("uniform, twice the budget", 16, 16)):
        between, total = judge.between_even(prompts) / unit, judge.uniform(prompts, rollouts) / unit
        row = f"{name} {prompts} x {rollouts}, RLOO | {between:.3f} | {total - between:.3f} | {total:.3f}"
        lines.append(f"| none | {row} |")
    for belief in track(beliefs, description="Beliefs"):
        for name, make in DESIGNS.items():
            planner, asked = make(belief.predictor(known, pool.ids), len(pool.ids))
            step = judge.over_passes(_asks(planner, pool), min(asked, len(pool.ids)), steps, 0)
            cells = (
                f"{step.between / unit:.3f} | {step.within / unit:.3f} | {step.total / unit:.3f} ({step.se / unit:.3f})"
            )
            lines.append(f"| {belief.name} | {name} | {cells} |")
    return "\n".join(lines)


def _asks(planner: Any, pool: Measured) -> Callable[[FloatArray], tuple[Plan, Plan]]:
    def ask(rows: FloatArray) -> tuple[Plan, Plan]:
        plan = planner.ask([pool.ids[row] for row in rows], budget=128)
        planner.cancel(plan)
        return plan, plan

    return ask


def spread(pool: Measured) -> str:
    """How prompts differ: one line."""
    half = pool.baseline_halves[0]
    squared, variance = half.squared_gradient, half.variance(np.full(len(pool.ids), 8), None, None)
    error = squared.std(ddof=1) / len(squared) ** 0.5
    return (
        f"{len(pool.ids)} prompts; mean squared gradient of a prompt {squared.mean():.3g} (se {error:.2g}), "
        f"variance of its estimate from 8 rollouts {variance.mean():.3g}"
    )


def main() -> None:
    """Measure what is missing, print what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of prepare-smollm2")
    parser.add_argument("out", type=Path, help="folder of the pieces")
    parser.add_argument("--prompts", type=int, default=6, help="of each level")
    parser.add_argument("--rollouts", type=int, default=64, help="of each prompt")
    parser.add_argument("--levels", nargs="+", default=[level.name for level in LEVELS])
    parser.add_argument("--data", type=Path, default=smollm2_data.SHIPPED)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=200, help="that are judged of each design")
    parser.add_argument("--beliefs", nargs="+", default=[belief.name for belief in BELIEFS])
    parser.add_argument("--only-draw", action="store_true", help="draw and measure, without the table")
    own = parser.parse_args()
    torch.set_num_threads(1)
    own.out.mkdir(parents=True, exist_ok=True)
    policy: Policy | None = None
    made = []
    every = [part for part in Questions.of_all(LEVELS, smollm2_data.PROMPTS) if part.level.name in own.levels]
    for questions in track(every, description="Levels"):
        file = own.out / f"{questions.level.name}.safetensors"
        if not file.exists():
            policy = policy or Policy(own.model, device=own.device)
            save_state(file, make_piece(policy, questions, own.prompts, own.rollouts), kind=KIND)
        made.append(load_state(file, kind=KIND))
    if own.only_draw:
        return
    known = of_smollm2(own.data)
    for matrix in MATRICES:
        pool = measured(made, known, matrix)
        beliefs = [belief for belief in BELIEFS if belief.name in own.beliefs]
        print(f"\n{matrix}: {spread(pool)}\n\n{table(pool, known, beliefs, own.steps)}")


if __name__ == "__main__":
    main()
