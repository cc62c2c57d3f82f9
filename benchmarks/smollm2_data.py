"""What SmolLM2-135M-Instruct can do at the fixed policy: makes benchmarks/data/smollm2, piece by piece.

    allotment prepare-smollm2 models/smollm2
    python benchmarks/smollm2_data.py models/smollm2 runs/smollm2-data [--prompts 40] [--write benchmarks/data/smollm2]

Questions of reasoning-gym at the levels below, four worked examples of the level before each; 16 rollouts at
temperature 1, as two visits of 8. A level is a piece: finished ones are not made again, a killed run goes on where it
was. ``--write`` puts the whole into two files: ``counts.jsonl``, a line a prompt (``allotment audit`` reads it), and
``prompts.safetensors`` with what the policy shows of each before anything is drawn, and the embedding of its text.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track

from allotment.prediction import distinct_parts, embed
from allotment.run_logs.files import to_jsonl, write_atomically
from allotment.state import decode_json, encode_json, load_state, save_state
from allotment.tasks.entries import encode_entry
from allotment.tasks.levels import Level
from allotment.tasks.mixture import fresh_entries
from allotment.tasks.rewards import make_reward
from allotment.types import FloatArray
from smollm2_generation import Drawn, draw

SHIPPED = Path(__file__).parent / "data" / "smollm2"
KIND = "smollm2-prompts"
PROMPTS = 40
"""Of each level, as far as it has so many."""
VISIT, VISITS = 8, 2
SHOTS = 4
SEED = 2026_11_29
LAYERS, DIRECTIONS = (10, 20, 30), 128
"""Layers whose states are kept, each along so many random directions."""
AT_ONCE = 20
MAX_TOKENS = 8
SPLITS = {"min_terms": 2, "max_terms": 2}

LEVELS: tuple[Level, ...] = (
    Level("chain_sum-2x1", "chain_sum", {**SPLITS, "min_digits": 1, "max_digits": 1}),
    Level("chain_sum-2x2", "chain_sum", {**SPLITS, "min_digits": 2, "max_digits": 2}),
    Level("chain_sum-3x1", "chain_sum", {"min_terms": 3, "max_terms": 3, "min_digits": 1, "max_digits": 1}),
    Level("basic_arithmetic-2", "basic_arithmetic", {**SPLITS, "min_digits": 1, "max_digits": 1}),
    Level("basic_arithmetic-3", "basic_arithmetic", {"min_terms": 3, "max_terms": 3, "min_digits": 1, "max_digits": 1}),
    Level("products-1", "products", {**SPLITS, "min_digits": 1, "max_digits": 1}),
    Level("gcd-10", "gcd", {"max_value": 10}),
    Level("gcd-50", "gcd", {"max_value": 50}),
    Level("lcm-6", "lcm", {"max_value": 6}),
    Level("lcm-12", "lcm", {"max_value": 12}),
    Level("count_bits-31", "count_bits", {"max_n": 31}),
    Level("simple_equations-9", "simple_equations", {**SPLITS, "max_value": 9}),
    Level("letter_counting-3", "letter_counting", {"min_words": 2, "max_words": 3}),
    Level("letter_counting-5", "letter_counting", {"min_words": 4, "max_words": 5}),
    Level("letter_counting-9", "letter_counting", {"min_words": 7, "max_words": 9}),
    Level("number_sequence-1", "number_sequence", {"max_complexity": 1}),
    Level("leg_counting-1", "leg_counting", {"min_animals": 1, "max_animals": 1, "max_instances": 5}),
    Level("leg_counting-2", "leg_counting", {"min_animals": 2, "max_animals": 2, "max_instances": 5}),
    Level("count_primes-30", "count_primes", {"max_n": 30}),
    Level("spell_backward-3", "spell_backward", {"min_word_len": 3, "max_word_len": 3}),
    Level("syllogism", "syllogism", {}),
    Level("decimal_chain_sum-2x1", "decimal_chain_sum", {
        **SPLITS, "min_digits": 1, "max_digits": 1, "min_decimal_places": 1, "max_decimal_places": 1}),
    Level("aiw", "aiw", {}),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Questions:
    """Distinct questions of a level and the worked examples that stand before each."""

    level: Level
    entries: tuple[Mapping[str, Any], ...]
    examples: tuple[Mapping[str, Any], ...]

    @classmethod
    def of_all(cls, levels: Sequence[Level], count: int) -> list[Questions]:
        """At most ``count`` questions of each level, none of which is an example or stands in an earlier level."""
        seen: set[str] = set()
        found = []
        for level in levels:
            fresh = fresh_entries(level, seen, 20 * count + SHOTS, SEED)
            entries = tuple(entry for _, entry in islice(fresh, count + SHOTS))
            found.append(cls(level, entries[SHOTS:], entries[:SHOTS]))
        return found

    @property
    def beginning(self) -> str:
        """The worked examples."""
        return "".join(f"Question: {e['question']}\nAnswer: {e['answer']}\n\n" for e in self.examples)

    def asked(self) -> list[str]:
        """What comes after the examples."""
        return [f"Question: {entry['question']}\nAnswer:" for entry in self.entries]


class Policy:
    """A model, its tokenizer, and what ends an answer: a new line."""

    def __init__(self, folder: Path, dtype: str = "bfloat16", device: str = "cpu") -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        causal: Any = AutoModelForCausalLM
        self.model = causal.from_pretrained(folder, dtype=getattr(torch, dtype)).to(device).eval()
        texts = self.tokenizer.batch_decode([[token] for token in range(len(self.tokenizer))])
        ends = [token for token, text in enumerate(texts) if "\n" in text]
        self.stop = torch.tensor(sorted({*ends, self.tokenizer.eos_token_id}), device=device)

    def draw(self, questions: Questions, rows: range, rollouts: int, seed: int, **further: Any) -> Drawn:
        """Rollouts of some of a level's questions."""
        asked = questions.asked()[rows.start : rows.stop]
        generator = torch.Generator(self.model.device).manual_seed(seed)
        beginning, prompts = self.tokens([questions.beginning])[0], self.tokens(asked)
        return draw(self.model, beginning, prompts, rollouts, MAX_TOKENS, self.stop, generator, **further)

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Token numbers of each text."""
        found: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=False).input_ids
        return found

    def rewards(self, questions: Questions, rows: range, drawn: Drawn) -> FloatArray:
        """[B, R] 1 for a right answer that was ended, else 0."""
        completions = [drawn.completions(row, self.stop) for row in range(len(rows))]
        texts = [self.tokenizer.decode(tokens or []).strip() for row in completions for tokens in row]
        entries = [encode_entry(questions.entries[row]) for row in rows for _ in completions[0]]
        score = make_reward("reasoning-gym", source=f"reasoning-gym:{questions.level.dataset}", rule="whole").score
        found = np.array([value or 0.0 for value in score(texts, entries)]).reshape(len(rows), -1)
        return found * np.array([[tokens is not None for tokens in row] for row in completions])


def reduced(hidden_MLH: FloatArray) -> FloatArray:
    """[M, L * K] standardised states of M prompts along K fixed random directions of each of L layers.

    Every unit of a state is brought to mean 0 and variance 1 over the prompts first: a few units of such models are a
    hundred times larger than the others. Distances between prompts are kept in the mean.
    """
    centred_MLH = hidden_MLH - hidden_MLH.mean(0)
    spread_LH = centred_MLH.std(0)
    unit_MLH = centred_MLH / np.where(spread_LH > 0, spread_LH, 1.0)
    width = hidden_MLH.shape[2]
    signs_HK = np.random.default_rng(SEED).choice([-1.0, 1.0], (width, DIRECTIONS))
    return (unit_MLH @ signs_HK / np.sqrt(width * DIRECTIONS)).reshape(len(hidden_MLH), -1)


def make_piece(policy: Policy, questions: Questions, visits: int = VISITS) -> dict[str, Any]:
    """A level's lines and the policy's view of its prompts."""
    level = questions.level
    lines: list[dict[str, Any]] = []
    views: list[tuple[FloatArray, ...]] = []
    last = policy.model.config.num_hidden_layers
    layers = [layer for layer in LAYERS if layer <= last] or [last]
    for first in range(0, len(questions.entries), AT_ONCE):
        rows = range(first, min(first + AT_ONCE, len(questions.entries)))
        seed = int.from_bytes(sha256(f"{SEED} {level.name} {first}".encode()).digest()[:4], "big")
        drawn = policy.draw(questions, rows, VISIT * visits, seed, layers=layers)
        successes = policy.rewards(questions, rows, drawn).reshape(len(rows), visits, VISIT).sum(2).astype(int)
        lengths = drawn.lengths.cpu().numpy().reshape(len(rows), visits, VISIT).sum(2)
        for row, won, tokens in zip(rows, successes, lengths, strict=True):
            entry = questions.entries[row]
            lines.append(
                {"prompt_id": f"{level.name}/{row}", "family": level.dataset, "level": level.name,
                 "prompt": entry["question"], "answer": str(entry["answer"]), "rollouts_per_visit": VISIT,
                 "successes": won.tolist(), "tokens": tokens.tolist()}
            )  # fmt: skip
        seen = (drawn.hidden_BLH, drawn.log_probability_B, drawn.entropy_B, drawn.largest_B)
        views.append(tuple(part.cpu().float().numpy() for part in seen))
    hidden, log_probability, entropy, largest = (np.concatenate(parts) for parts in zip(*views, strict=True))
    policy_view = {"hidden": hidden, "log_probability": log_probability, "entropy": entropy, "largest": largest}
    return {"lines": encode_json(lines), **policy_view}


def pieces(
    model: Path, out: Path, levels: Sequence[Level], prompts: int, visits: int, device: str
) -> Iterator[dict[str, Any]]:
    """The piece of each level; made where it is missing."""
    out.mkdir(parents=True, exist_ok=True)
    policy: Policy | None = None
    every = Questions.of_all(LEVELS, prompts)  # a level's questions do not depend on which levels are made
    for questions in track([part for part in every if part.level in levels], description="Levels"):
        file = out / f"{questions.level.name}.safetensors"
        if not file.exists():
            policy = policy or Policy(model, device=device)
            save_state(file, make_piece(policy, questions, visits), kind=KIND)
        yield load_state(file, kind=KIND)


def write(folder: Path, made: Sequence[dict[str, Any]]) -> None:
    """The two files."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [line for piece in made for line in decode_json(piece["lines"])]
    views = {key: np.concatenate([piece[key] for piece in made]) for key in made[0] if key != "lines"}
    views["hidden"] = reduced(views["hidden"]).astype(np.float16)
    views["embedding"] = embed(distinct_parts([line["prompt"] for line in lines]), progress=True).astype(np.float16)
    save_state(folder / "prompts.safetensors", views, kind=KIND)
    write_atomically(folder / "counts.jsonl", to_jsonl(lines))


def summary(made: Sequence[dict[str, Any]]) -> str:
    """A line a level, and one for all: prompts, mean success, shares without a success or without a failure, tokens."""
    lines = ["| level | prompts | success | all failed | all right | tokens |", "|---|--:|--:|--:|--:|--:|"]
    parts = [(decode_json(piece["lines"])[0]["level"], decode_json(piece["lines"])) for piece in made]
    for name, rows in [*parts, ("all", [row for _, part in parts for row in part])]:
        rate = np.array([np.sum(row["successes"]) / (VISIT * len(row["successes"])) for row in rows])
        tokens = np.mean([np.sum(row["tokens"]) / (VISIT * len(row["tokens"])) for row in rows])
        shares = f"{(rate == 0).mean():.2f} | {(rate == 1).mean():.2f}"
        lines.append(f"| {name} | {len(rows)} | {rate.mean():.3f} | {shares} | {tokens:.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Make what is missing, print what there is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="folder of prepare-smollm2")
    parser.add_argument("out", type=Path, help="folder of the pieces")
    parser.add_argument("--prompts", type=int, default=PROMPTS, help="of each level")
    parser.add_argument("--visits", type=int, default=VISITS, help="of 8 rollouts each")
    parser.add_argument("--levels", nargs="+", default=[level.name for level in LEVELS])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--write", type=Path, help="folder for the two files")
    own = parser.parse_args()
    torch.set_num_threads(1)
    levels = [level for level in LEVELS if level.name in own.levels]
    made = list(pieces(own.model, own.out, levels, own.prompts, own.visits, own.device))
    if own.write:
        write(own.write, made)
    print(summary(made))


if __name__ == "__main__":
    main()
