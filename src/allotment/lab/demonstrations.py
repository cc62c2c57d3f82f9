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
    """Demonstrations as rollouts, of reward 1; ``group_N`` are rows of ``problems``. Nothing drew them: no entropies.

    Raises:
        InvalidInputError: there is none; or one is not of the task: its prompt is not among the problems, it is empty,
            has characters outside the vocabulary, is longer than a rollout can be, or is not right.
    """
    if not demonstrations:
        raise _refused("there are no demonstrations", "an empty list", "at least one", "give some, or leave them out")
    row_of = {problem.id: row for row, problem in enumerate(problems)}
    rows, tokens, answers = [], [], []
    for given in demonstrations:
        if not (isinstance(given, list | tuple) and len(given) == 2 and all(isinstance(part, str) for part in given)):
            raise _refused(
                "a demonstration has another form",
                repr(given),
                "two texts: the id of a prompt, and a completion",
                'write it as ["gcd-20/7", "4"]',
            )
        prompt, text = given
        if prompt not in row_of:
            raise _refused(
                "a demonstration is of a prompt that is not trained on",
                repr(prompt),
                f"ids of the {len(row_of)} prompts of the pool, such as {problems[0].id!r}",
                "leave it out, or correct the id",
            )
        problem = problems[row_of[prompt]]
        tokens.append(_checked_tokens(lab, problem, text))
        answers.append(lab.regime.answer_of(text))
        rows.append(row_of[prompt])
    length = max(map(len, tokens))
    tokens_NT = torch.tensor([row + [lab.tokenizer.pad] * (length - len(row)) for row in tokens])
    mask_NT = torch.arange(length) < torch.tensor([[len(row)] for row in tokens])
    nothing_NT = torch.zeros(tokens_NT.shape)
    return Rollouts(
        torch.tensor(rows), tokens_NT, mask_NT, np.ones(len(rows)), nothing_NT, nothing_NT.clone(), tuple(answers)
    )


def _checked_tokens(lab: Lab, problem: Problem, text: str) -> list[int]:
    """Tokens of a right completion, with the end token."""
    name, fix = f"the demonstration of {problem.id!r}", "leave it out, or correct it"
    if not text:
        raise _refused(f"{name} is empty", repr(text), "a completion", fix)
    try:
        tokens = lab.tokenizer.encode_answer(text)
    except InvalidInputError as error:
        raise _refused(
            f"{name} has tokens outside the vocabulary", repr(text), "the policy's characters", fix
        ) from error
    if len(tokens) > lab.regime.max_tokens:
        got, allowed = f"{len(tokens)} tokens with the end: {text!r}", f"at most {lab.regime.max_tokens}"
        raise _refused(f"{name} is longer than a rollout can be", got, allowed, fix)
    answer = lab.regime.answer_of(text)
    if answer is None or not is_correct(problem, answer):
        form = f"{lab.regime.scratchpad} characters, '=' and " * bool(lab.regime.scratchpad)
        raise _refused(f"{name} is not right", repr(text), f"{form}an answer that the verifier accepts", fix)
    return tokens


def _refused(wrong: str, got: str, allowed: str, fix: str) -> InvalidInputError:
    return InvalidInputError(wrong, got=got, allowed=allowed, fix=fix)
