"""Right completions of prompts, to be imitated: made from the task's own answers, or given and checked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from allotment.errors import InvalidInputError
from allotment.lab.generation import Lab, Rollouts
from allotment.tasks.mixture import Problem
from allotment.tasks.verifier import is_correct

Demonstration = tuple[str, str]
"""Id of a prompt, text of a completion."""


def written_demonstrations(lab: Lab, problems: Sequence[Problem], share: float, seed: int) -> list[Demonstration]:
    """A completion, as in the warm start, of each of a ``share`` of the problems, at least one; in their order.

    A smaller share of the same seed is of some of the prompts of a larger one.
    """
    random = np.random.default_rng([seed, 11])
    shown = random.permutation(len(problems))[: max(1, round(share * len(problems)))]
    texts = [lab.regime.target(problem.answer, random) for problem in problems]
    return [(problems[i].id, texts[i]) for i in sorted(shown.tolist())]


def as_rollouts(lab: Lab, problems: Sequence[Problem], demonstrations: Sequence[Demonstration]) -> Rollouts:
    """Demonstrations as rollouts, of reward 1; ``group_N`` are rows of ``problems``. Nothing drew them: no
    entropies. Raises InvalidInputError: there is none; or one is not of the task: its prompt is not among the
    problems, it is empty, has characters outside the vocabulary, is longer than a rollout can be, or is not right.
    """
    if not demonstrations:
        raise _refused("there are no demonstrations", "an empty list", "at least one")
    row_of = {problem.id: row for row, problem in enumerate(problems)}
    rows, tokens, answers = [], [], []
    for given in demonstrations:
        if not (isinstance(given, list | tuple) and len(given) == 2 and all(isinstance(part, str) for part in given)):
            form = 'the id of a prompt and a completion, such as ["gcd-20/7", "4"]'
            raise _refused("a demonstration has another form", repr(given), form)
        prompt, text = given
        if prompt not in row_of:
            allowed = f"ids of the {len(row_of)} prompts of the pool, such as {problems[0].id!r}"
            raise _refused("a demonstration is of a prompt that is not trained on", repr(prompt), allowed)
        rows.append(row_of[prompt])
        tokens.append(_checked_tokens(lab, problems[rows[-1]], text))
        answers.append(lab.regime.answer_of(text))
    tokens_NT = lab.tokenizer.padded(tokens)
    mask_NT = torch.arange(tokens_NT.shape[1]) < torch.tensor([[len(row)] for row in tokens])
    nothing_NT = torch.zeros(tokens_NT.shape)
    return Rollouts(
        torch.tensor(rows), tokens_NT, mask_NT, np.ones(len(rows)), nothing_NT, nothing_NT.clone(), tuple(answers)
    )


def _checked_tokens(lab: Lab, problem: Problem, text: str) -> list[int]:
    """Tokens of a right completion, with the end token."""
    name, regime = f"the demonstration of {problem.id!r}", lab.regime
    if not text:
        raise _refused(f"{name} is empty", repr(text), "a completion")
    try:
        tokens = lab.tokenizer.encode_answer(text)
    except InvalidInputError as error:
        raise _refused(f"{name} has tokens outside the vocabulary", repr(text), "the policy's characters") from error
    if len(tokens) > regime.max_tokens:
        got = f"{len(tokens)} tokens with the end: {text!r}"
        raise _refused(f"{name} is longer than a rollout can be", got, f"at most {regime.max_tokens}")
    answer = regime.answer_of(text)
    if answer is None or not is_correct(problem, answer):
        form = f"{regime.scratchpad} characters, '=' and " * bool(regime.scratchpad)
        raise _refused(f"{name} is not right", repr(text), f"{form}an answer that the verifier accepts")
    return tokens


def _refused(wrong: str, got: str, allowed: str) -> InvalidInputError:
    return InvalidInputError(wrong, got=got, allowed=allowed, fix="correct the demonstrations, or leave them out")
