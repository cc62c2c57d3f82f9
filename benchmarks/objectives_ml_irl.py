"""What a reward learnt from demonstrations is worth: against the verifier's, and against imitating them.

    python benchmarks/objectives_ml_irl.py [--arms verifier irl ...] [--seeds 0 1 2 3] [--out FILE]

Paired runs in the lab (equal seeds: the same prompts in the same order), 16 prompts x 8 rollouts a step, the policy
gradient of RLOO. ``verifier``: its reward. ``irl``: a reward learnt from a right completion of every prompt of the
pool, or of a quarter; from hidden states at the last token; without penalty. ``imitation``: the warm start's
supervised training on the same prompts, 16 completions a step, as many steps; its free characters are drawn anew each
time. ``transfer``: a new policy on the reward that ``irl`` of the same seed ended with, frozen. ``vowels``:
demonstrations whose five free characters are vowels, which the verifier does not ask for: something that can be read
off a completion without knowing the answer.

Success on pool and held-out prompts is the verifier's, exact given the scratchpad. ``auc`` is of the learnt reward,
over 8 rollouts of each held-out prompt, ``within`` its mean within prompts that have right and wrong ones; ``judged``
and ``verified`` are successes of the run's own rollouts since the last row, ``vowels`` is a share of free characters.

Every result is a line of ``--out``, from which the tables of markdown are made; runs that are there are not repeated.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from allotment.lab.checkpoint import load_lab
from allotment.lab.config import TrainConfig
from allotment.lab.demonstrations import written_demonstrations
from allotment.lab.generation import Lab, seeded_generator
from allotment.lab.ml_irl import MaximumLikelihoodIRL
from allotment.lab.regime import Regime
from allotment.lab.train import Trainer
from allotment.methods.objectives.representation import auc, auc_within
from allotment.state import load_state, save_state
from allotment.tasks.mixture import Mixture, load_mixture
from shipped.warm_start import Stage, train_stage

Row = dict[str, Any]
VOWELS = "aeiou"
ARMS: dict[str, Row] = {
    "verifier": {},
    "irl": {},
    "irl-quarter": {"share": 0.25},
    "irl-last": {"pooling": "last"},
    "irl-no-penalty": {"penalty": 0.0},
    "imitation": {},
    "imitation-quarter": {"share": 0.25},
    "transfer": {"reward_of": "irl"},
    "verifier-vip": {"planner": "vip"},
    "irl-vip": {"planner": "vip"},
    "vowels-irl": {"vowels": True},
    "vowels-irl-vip": {"vowels": True, "planner": "vip"},
    "vowels-imitation": {"vowels": True},
    "vowels-transfer": {"reward_of": "vowels-irl", "vowels": True},
}
MEASURES = ("pool", "held_out", "auc", "within", "judged", "verified", "vowels", "gap")


class Vowels(Regime):
    """Demonstrations whose free characters are vowels."""

    def target(self, answer: str, random: np.random.Generator) -> str:
        """Vowels, ``=``, the answer."""
        return "".join(random.choice(list(VOWELS), self.scratchpad)) + "=" + answer


def demonstrations(arm: str, regime: Regime, mixture: Mixture, seed: int) -> list[tuple[str, str]] | None:
    """Those with vowels; None where the judge is to write them itself."""
    if "vowels" not in ARMS[arm]:
        return None
    random, style = np.random.default_rng([seed, 12]), Vowels(regime.name, regime.scratchpad)
    return [(problem.id, style.target(problem.answer, random)) for problem in mixture.pool]


def reward_file(arm: str, options: argparse.Namespace, seed: int) -> Path:
    """Where the reward that a run ended with is kept."""
    rates = f"{options.learning_rate:g}-{options.reward_rate:g}-{options.beta:g}"
    return Path(f"{options.out}.{arm}-{options.regime}-{options.steps}-{rates}-{seed}.safetensors")


def trainer(arm: str, options: argparse.Namespace, seed: int) -> Trainer:
    """A new run."""
    settings, mixture, given = ARMS[arm], load_mixture(), {}
    if not arm.startswith("verifier"):
        table = {"beta": options.beta, "learning_rate": options.reward_rate}
        table |= {key: settings[key] for key in ("share", "penalty", "pooling") if key in settings}
        if "reward_of" in settings:
            table["learning_rate"] = 0.0
        lab = load_lab(options.regime)
        if (those := demonstrations(arm, lab.regime, mixture, seed)) is not None:
            table["demonstrations"] = those
        given = {"objective": ("ml-irl",), "objective_settings": {"ml-irl": table}}
    planner, rate = settings.get("planner", "uniform"), options.learning_rate
    config = TrainConfig(
        regime=options.regime, planner=planner, seed=seed, steps=options.steps, learning_rate=rate, **given
    )
    made = Trainer(config)
    if "reward_of" in settings:
        assert made.judge is not None
        path = reward_file(settings["reward_of"], options, seed)
        made.judge.load_state_dict(load_state(path, kind=MaximumLikelihoodIRL.KIND))
    return made


def measures(lab: Lab, mixture: Mixture, judge: MaximumLikelihoodIRL | None, seed: int) -> Row:
    """Exact success, and what rollouts of the held-out prompts say."""
    sets = {"pool": mixture.pool, "held_out": mixture.held_out}
    row = {name: lab.success_probability(problems).mean() for name, problems in sets.items()}
    problems = list(mixture.held_out)
    rollouts = lab.rollouts(problems, np.full(len(problems), 8), seeded_generator(seed, 77))
    texts = [lab.tokenizer.decode(tokens)[: lab.regime.scratchpad] for tokens in rollouts.tokens_NT.tolist()]
    if lab.regime.scratchpad:
        row["vowels"] = np.mean([character in VOWELS for text in texts for character in text])
    if judge is None:
        return row
    rewards_N, right_N = judge.rewards(problems, rollouts).double().numpy(), rollouts.rewards_N
    row |= {"auc": auc(rewards_N, right_N), "within": auc_within(rewards_N, right_N, rollouts.group_N.numpy())}
    return row


def train_rows(arm: str, options: argparse.Namespace, seed: int) -> Iterator[Row]:
    """A row before the first step and every ``options.every`` steps."""
    made, seen = trainer(arm, options, seed), []
    judge = made.judge
    assert judge is None or isinstance(judge, MaximumLikelihoodIRL)
    for step in range(options.steps + 1):
        if step:
            line = made.step(step)[0]
            names = {"judged": "success", "verified": "verified_success", "gap": "reward_gap"}
            if judge is None:
                names = {"verified": "success"}
            seen.append({measure: line[name] for measure, name in names.items()} | {"tokens": line["tokens_total"]})
        if step % options.every == 0:
            means = {name: float(np.mean([each[name] for each in seen])) for name in (seen[0] if seen else ())}
            row = measures(made.lab, made.mixture, judge, seed)
            tokens = seen[-1]["tokens"] if seen else 0
            yield {"arm": arm, "step": step, **row, **means, "tokens": tokens}
            seen = []
    if judge is not None:
        save_state(reward_file(arm, options, seed), judge.state_dict(), kind=judge.KIND)


def imitation_rows(arm: str, options: argparse.Namespace, seed: int) -> Iterator[Row]:
    """Before and after."""
    lab, mixture = load_lab(options.regime), load_mixture()
    yield {"arm": arm, "step": 0, **measures(lab, mixture, None, seed)}
    shown = {prompt for prompt, _ in written_demonstrations(lab, mixture.pool, ARMS[arm].get("share", 1.0), seed)}
    regime = Vowels(lab.regime.name, lab.regime.scratchpad) if "vowels" in ARMS[arm] else lab.regime
    stage = Stage(regime, options.steps, options.imitation_rate, batch=16, warm_up=10, seed=seed)
    train_stage(lab, [problem for problem in mixture.pool if problem.id in shown], stage)
    yield {"arm": arm, "step": options.steps, **measures(lab, mixture, None, seed)}


def cell(values: Sequence[float]) -> str:
    """Mean and standard error over seeds."""
    if len(values) < 2:
        return f"{values[0]:.3f}" if values else "-"
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1) / len(values) ** 0.5:.3f}"


def tables(rows: Sequence[Row]) -> str:
    """A line for each arm and step; then paired differences at the last step, to the start and to the verifier."""
    lines = ["| arm | step | seeds | " + " | ".join(MEASURES) + " |", "|---|--:|--:|" + "--:|" * len(MEASURES)]
    at = {(row["arm"], row["step"], row["seed"]): row for row in rows}
    for arm, step in dict.fromkeys((row["arm"], row["step"]) for row in rows):
        own = [row for row in rows if (row["arm"], row["step"]) == (arm, step)]
        cells = [cell([row[m] for row in own if m in row]) for m in MEASURES]
        lines.append(f"| {arm} | {step} | {len(own)} | {' | '.join(cells)} |")
    last, sets = max(row["step"] for row in rows), ("pool", "held_out")
    lines += ["", "| arm | pool, gain | held out, gain | pool, less verifier | held out, less verifier |"]
    lines += ["|---|--:|--:|--:|--:|"]
    for arm in dict.fromkeys(row["arm"] for row in rows):
        cells = []
        for other in ((arm, 0), ("verifier", last)):
            seeds = [s for a, step, s in at if (a, step) == (arm, last) and (*other, s) in at]
            cells += [cell([at[arm, last, s][m] - at[*other, s][m] for s in seeds]) for m in sets]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> None:
    """Run what is not there yet, print all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--regime", choices=("scratchpad", "short"), default="scratchpad")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--arms", nargs="+", choices=tuple(ARMS), default=list(ARMS))
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--every", type=int, default=60)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--reward-rate", type=float, default=3e-3)
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--imitation-rate", type=float, default=3e-4)
    parser.add_argument("--out", type=Path, default=Path("objectives_ml_irl.jsonl"))
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    found = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    shown = []
    for seed in options.seeds:
        for arm in options.arms:
            imitates = "imitation" in arm
            rates = {"imitation_rate": options.imitation_rate} if imitates else {"learning_rate": options.learning_rate}
            if not imitates and not arm.startswith("verifier"):
                rates |= {"reward_rate": options.reward_rate, "beta": options.beta}
            key = {"arm": arm, "seed": seed, "regime": options.regime, "steps": options.steps, **rates}
            own = [row for row in found if key.items() <= row.items()]
            if not own:
                made = imitation_rows(arm, options, seed) if imitates else train_rows(arm, options, seed)
                own = [{**key, **row} for row in made]
                with options.out.open("a") as file:
                    file.writelines(json.dumps(row) + "\n" for row in own)
            shown += own
    print(tables(shown))


if __name__ == "__main__":
    main()
