"""Rollouts of the lab's policy: sampling, scoring, verification, exact chances of success."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain, compress
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from allotment.lab.language_policy import Cache, LanguagePolicy
from allotment.lab.regime import Regime
from allotment.lab.tokenizer import Tokenizer
from allotment.learning import SketchDirections, last_layer_scores, layer_scores
from allotment.tasks.answers import right_answers
from allotment.tasks.mixture import Problem
from allotment.tasks.verifier import is_correct
from allotment.types import FloatArray, IntArray

Pooling = Literal["last", "mean", "choice"]
"""Which hidden states stand for a rollout; see :meth:`Lab.representations`."""
DISTINCT_IN = 16
"""Rollouts of a prompt among which different right answers are counted."""
_ROWS = 2048
"""Answers that are scored at once."""


@dataclass(frozen=True)
class Rollouts:
    """N completions of Q prompts, ragged groups on one flat axis."""

    group_N: Tensor
    """[N] row of the prompt in the batch."""
    tokens_NT: Tensor
    """[N, T] completion tokens, padded after the end token."""
    mask_NT: Tensor
    """[N, T] True up to and including the end token."""
    rewards_N: FloatArray
    """[N] 1.0 for a verified answer, else 0.0."""
    log_probs_NT: Tensor
    """[N, T] log-probability of every token under the policy that drew it; 0 outside the mask."""
    entropies_NT: Tensor
    """[N, T] entropy of the distribution every token was drawn from, in nats; 0 outside the mask."""
    answers_N: tuple[str | None, ...]
    """[N] the answer in each completion; None where the form is broken or the end is missing."""
    distribution_NTV: Tensor | None = None
    """[N, T, V] log-probabilities of the whole vocabulary under the policy that drew, where an objective wants them."""
    uniforms_NT: Tensor | None = None
    """[N, T] random numbers in [0, 1) of the tokens, where an objective decides by them."""
    verified_N: FloatArray | None = None
    """[N] the verifier's rewards, where a judge has taken its place in ``rewards_N``."""
    judged_N: FloatArray | None = None
    """[N] the judge's rewards, of which advantages are made."""

    def __len__(self) -> int:
        return len(self.group_N)

    @classmethod
    def concatenate(cls, parts: Sequence[Rollouts]) -> Rollouts:
        """The rollouts of several rounds of one batch."""
        return cls(**{f.name: _joined([getattr(part, f.name) for part in parts]) for f in fields(cls)})

    def take(self, chosen_N: Tensor) -> Rollouts:
        """The rollouts where ``chosen_N`` [N] is True."""
        return Rollouts(**{f.name: _chosen(getattr(self, f.name), chosen_N) for f in fields(self)})

    def of_prompt(self, row: int) -> Rollouts:
        """The rollouts of one prompt alone, which is then row 0."""
        own = self.take(self.group_N == row)
        return replace(own, group_N=torch.zeros_like(own.group_N))

    @property
    def n_tokens(self) -> int:
        """Completion tokens generated."""
        return int(self.mask_NT.sum())


def _joined(parts: Sequence[Any]) -> Any:
    """One column of several parts; None where one has none."""
    if any(part is None for part in parts):
        return None
    if isinstance(parts[0], tuple):
        return tuple(chain(*parts))
    return torch.cat(list(parts)) if isinstance(parts[0], Tensor) else np.concatenate(parts)


def _chosen(column: Any, chosen_N: Tensor) -> Any:
    """The rows of a column where ``chosen_N`` is True."""
    if isinstance(column, tuple):
        return tuple(compress(column, chosen_N.tolist()))
    return None if column is None else column[chosen_N if isinstance(column, Tensor) else chosen_N.numpy()]


@dataclass(frozen=True)
class Outputs:
    """What the policy says of given completions; differentiable."""

    log_probs_NT: Tensor
    """[N, T] of every completion token, 0 where masked."""
    distribution_NTV: Tensor
    """[N, T, V] log-probabilities of the whole vocabulary."""
    hidden_NTH: Tensor
    """[N, T, H] what the output matrix is multiplied with."""


class Lab:
    """A policy with its tokenizer and regime: everything between a list of problems and verified rollouts."""

    def __init__(self, policy: LanguagePolicy[Any], tokenizer: Tokenizer, regime: Regime) -> None:
        self.policy, self.tokenizer, self.regime = policy, tokenizer, regime

    def encode(self, problems: Sequence[Problem]) -> Cache:
        """The prompt cache of Q problems; carries gradients if they are enabled."""
        cache: Cache = self.policy.encode_prompts(self._prompts(problems))
        return cache

    def _encoded(self, problems: Sequence[Problem], group_N: Tensor) -> Cache:
        """The cache of N rollouts; a prompt is run once, and not at all if it has no rollouts."""
        used_U, rows_N = torch.unique(group_N, return_inverse=True)
        return self.encode([problems[i] for i in used_U.tolist()]).repeat(rows_N)

    def _prompts(self, problems: Sequence[Problem]) -> list[list[int]]:
        return [self.tokenizer.encode_prompt(p.question) for p in problems]

    @torch.no_grad()
    def rollouts(self, problems: Sequence[Problem], counts_Q: IntArray, generator: torch.Generator) -> Rollouts:
        """Sample ``counts_Q[i]`` completions of ``problems[i]`` at temperature 1 and verify them."""
        group_N = torch.repeat_interleave(torch.arange(len(problems)), torch.as_tensor(counts_Q))
        cache = self._encoded(problems, group_N)
        tokens_NT, log_probs_NT, entropies_NT = self._sample(cache, self.regime.max_tokens, generator)
        ended = (tokens_NT == self.tokenizer.end).cumsum(1)
        mask_NT = (ended == 0) | ((ended == 1) & (tokens_NT == self.tokenizer.end))
        complete = (ended[:, -1] > 0).tolist()
        answers_N = tuple(
            self.regime.answer_of(self.tokenizer.decode(row)) if whole else None
            for row, whole in zip(tokens_NT.tolist(), complete, strict=True)
        )
        rewards = [
            float(answer is not None and is_correct(problems[g], answer))
            for g, answer in zip(group_N.tolist(), answers_N, strict=True)
        ]
        return Rollouts(group_N, tokens_NT, mask_NT, np.array(rewards), log_probs_NT, entropies_NT, answers_N)

    def is_truncated(self, rollouts: Rollouts) -> Tensor:
        """[N] whether a rollout ran into the length limit before its end token."""
        return ~(rollouts.tokens_NT == self.tokenizer.end).any(1)

    def log_probs(self, problems: Sequence[Problem], group_N: Tensor, tokens_NT: Tensor, mask_NT: Tensor) -> Tensor:
        """[N, T] log-probability of every completion token under the policy, 0 where masked; differentiable."""
        return self.outputs(problems, group_N, tokens_NT, mask_NT).log_probs_NT

    def outputs(self, problems: Sequence[Problem], group_N: Tensor, tokens_NT: Tensor, mask_NT: Tensor) -> Outputs:
        """What the policy says of given completions."""
        hidden_NTH = self.policy.hidden(self._encoded(problems, group_N), self.answer_inputs(tokens_NT))[0]
        distribution_NTV = self.policy.head(hidden_NTH).log_softmax(-1)
        taken_NT = distribution_NTV.gather(2, tokens_NT[:, :, None]).squeeze(2)
        return Outputs(torch.where(mask_NT, taken_NT, 0.0), distribution_NTV, hidden_NTH)

    @torch.no_grad()
    def prompt_hidden(self, problems: Sequence[Problem]) -> Tensor:
        """[Q, H] mean of the last hidden states over the tokens of each prompt."""
        return self.policy.prompt_hidden(self._prompts(problems))

    @torch.no_grad()
    def representations(self, problems: Sequence[Problem], rollouts: Rollouts, pooling: Pooling = "last") -> Tensor:
        """[N, layers, H] what every block makes of prompt and completion together.

        ``last``: at the last token of the completion, its end token if it has one. ``mean``: the mean over all tokens
        of prompt and completion, the answer token included. ``choice``: the derivative of the completion's
        log-probability, as it would be if this block were the last, by a gain on each of the H directions: what the
        hidden states said for the tokens that were drawn from them, summed over these. Padding counts in none.
        """
        answer_N1 = torch.full((len(rollouts), 1), self.tokenizer.answer)
        tokens_NT = torch.cat([answer_N1, rollouts.tokens_NT], dim=1)
        states_NTLH = self.policy.states(self._encoded(problems, rollouts.group_N), tokens_NT)
        if pooling == "choice":
            return self._choices(states_NTLH[:, :-1], rollouts)
        real_NT = torch.cat([torch.ones_like(answer_N1, dtype=torch.bool), rollouts.mask_NT], dim=1)
        if pooling == "last":
            return states_NTLH[torch.arange(len(rollouts)), real_NT.sum(1) - 1]
        prompt_QTLH, prompt_real_QT = self.policy.prompt_states(self._prompts(problems))
        summed_QLH = torch.einsum("qtlh,qt->qlh", prompt_QTLH, prompt_real_QT.to(prompt_QTLH.dtype))
        summed_NLH = torch.einsum("ntlh,nt->nlh", states_NTLH, real_NT.to(states_NTLH.dtype))
        tokens_N = prompt_real_QT.sum(1)[rollouts.group_N] + real_NT.sum(1)
        return (summed_QLH[rollouts.group_N] + summed_NLH) / tokens_N[:, None, None]

    def _choices(self, states_NTLH: Tensor, rollouts: Rollouts) -> Tensor:
        """[N, layers, H] of the states [N, T, layers, H] after which the tokens were drawn."""
        hidden_NTLH, weight_VH = self.policy.norm(states_NTLH), self.policy.head.weight
        expected_NTLH = self.policy.head(hidden_NTLH).softmax(-1) @ weight_VH
        choices_NTLH = hidden_NTLH * (weight_VH[rollouts.tokens_NT][:, :, None] - expected_NTLH)
        summed_NLH: Tensor = (choices_NTLH * rollouts.mask_NT[:, :, None, None]).sum(1)
        return summed_NLH

    @torch.no_grad()
    def success_probability(self, problems: Sequence[Problem], *, scratchpads: int = 4, seed: int = 0) -> FloatArray:
        """[Q] probability that one rollout is verified correct.

        Exact in the ``short`` regime: the answer is one string, so its probability is one forward pass. In the
        ``scratchpad`` regime the answer's probability is exact given the free characters, and averaged over
        ``scratchpads`` draws of these from the policy with a fixed seed: unbiased, and a function of the policy alone.
        Where there are many answers, exact: the sum over all of them.
        """
        if self.regime.has_many_answers:
            return np.array([sum(chances.values()) for chances in solution_chances(self, problems)])
        regime, draws = self.regime, scratchpads if self.regime.scratchpad else 1
        chunks = []
        for first in range(0, len(problems), 256):
            part = problems[first : first + 256]
            rows = torch.arange(len(part)).repeat_interleave(draws)
            cache = self._encoded(part, rows)
            answers = [self.tokenizer.encode_answer("=" * bool(regime.scratchpad) + p.answer) for p in part]
            answer_NT = self.tokenizer.padded(answers)[rows]
            tokens_NT, valid = answer_NT, torch.ones(len(rows))
            if regime.scratchpad:
                pads = self._sample(cache, regime.scratchpad, torch.Generator().manual_seed(seed + first))[0]
                valid = (pads != self.tokenizer.end).all(1).float()
                tokens_NT = torch.cat([pads, answer_NT], dim=1)
            logits = self.completion_logits(cache, tokens_NT)[:, regime.scratchpad :]
            taken = logits.log_softmax(-1).gather(2, answer_NT[:, :, None]).squeeze(2)
            log_p = torch.where(answer_NT == self.tokenizer.pad, 0.0, taken).sum(1)
            chunks.append((log_p.exp() * valid).view(len(part), draws).mean(1))
        return torch.cat(chunks).double().numpy()

    def completion_logits(self, cache: Cache, tokens_NT: Tensor) -> Tensor:
        """[N, T, vocabulary] logits from which each completion token was drawn."""
        return self.policy.extend(cache, self.answer_inputs(tokens_NT))[0]

    @torch.no_grad()
    def last_layer_scores(
        self, problems: Sequence[Problem], rollouts: Rollouts, directions: SketchDirections
    ) -> FloatArray:
        """[N, K] score sketches: derivatives of each rollout's log-probability along directions of the output matrix.

        One forward pass without gradient; the hidden states and logits are those that :meth:`log_probs` computes.
        """
        cache = self._encoded(problems, rollouts.group_N)
        hidden_NTH = self.policy.hidden(cache, self.answer_inputs(rollouts.tokens_NT))[0]
        logits_NTV = self.policy.head(hidden_NTH)
        scores_NK = last_layer_scores(logits_NTV, hidden_NTH, rollouts.tokens_NT, rollouts.mask_NT, directions)
        return scores_NK.double().numpy()

    def last_block_scores(
        self, problems: Sequence[Problem], rollouts: Rollouts, directions: SketchDirections
    ) -> FloatArray:
        """[N, K] the same along directions of a matrix of the last block, :attr:`LanguagePolicy.sketched`.

        A forward pass, and a backward pass through what lies above.
        """
        with torch.no_grad():
            cache = self._encoded(problems, rollouts.group_N)
        inputs_NT = self.answer_inputs(rollouts.tokens_NT)
        logits_NTV, entered_NTI, left_NTO = self.policy.through_sketched(cache, inputs_NT)
        taken_NT = logits_NTV.log_softmax(-1).gather(2, rollouts.tokens_NT[:, :, None]).squeeze(2)
        (gradients_NTO,) = torch.autograd.grad(torch.where(rollouts.mask_NT, taken_NT, 0.0).sum(), left_NTO)
        return layer_scores(entered_NTI, gradients_NTO, rollouts.mask_NT, directions).double().numpy()

    def answer_inputs(self, tokens_NT: Tensor) -> Tensor:
        """[N, T] the tokens after which those of the completions are drawn: the answer token first."""
        start = torch.full((len(tokens_NT), 1), self.tokenizer.answer)
        return torch.cat([start, tokens_NT[:, :-1]], dim=1)

    def _sample(self, cache: Cache, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """At most ``length`` tokens of N rows, their log-probabilities, and the entropies of what they were drawn from.

        All [N, T]; rows that have ended leave the computation and stay padded.
        """
        n = len(cache)
        tokens_NT = torch.full((n, length), self.tokenizer.pad)
        log_probs_NT, entropies_NT = torch.zeros(n, length), torch.zeros(n, length)
        active = torch.arange(n)
        last = torch.full((n, 1), self.tokenizer.answer)
        for t in range(length):
            logits, cache = self.policy.extend(cache, last, start=t)
            last = torch.multinomial(logits[:, 0].softmax(-1), 1, generator=generator)
            tokens_NT[active, t] = last[:, 0]
            log_p_NV = logits[:, 0].log_softmax(-1)
            log_probs_NT[active, t] = log_p_NV.gather(1, last)[:, 0]
            entropies_NT[active, t] = -(log_p_NV.exp() * log_p_NV).sum(1)
            going = (last[:, 0] != self.tokenizer.end).nonzero().squeeze(1)
            if len(going) < len(active):
                active, last, cache = active[going], last[going], cache.repeat(going)
            if not len(active):
                break
        return tokens_NT, log_probs_NT, entropies_NT


def seeded_generator(*key: int) -> torch.Generator:
    """Random numbers that are a function of ``key`` alone."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))


@torch.no_grad()
def solution_chances(lab: Lab, problems: Sequence[Problem]) -> list[Mapping[str, float]]:
    """For each problem, the probability that a rollout is a right answer of each form; they sum to the success."""
    found: list[dict[str, float]] = [{} for _ in problems]
    answers = [(q, *answer) for q, problem in enumerate(problems) for answer in right_answers(problem).items()]
    for first in range(0, len(answers), _ROWS):
        part = answers[first : first + _ROWS]
        low, high = part[0][0], part[-1][0]
        tokens_NT = lab.tokenizer.padded([lab.tokenizer.encode_answer(text) for _, text, _ in part])
        group_N = torch.tensor([q - low for q, *_ in part])
        log_p_NT = lab.log_probs(problems[low : high + 1], group_N, tokens_NT, tokens_NT != lab.tokenizer.pad)
        for (q, _, form), chance in zip(part, log_p_NT.sum(1).double().exp().tolist(), strict=True):
            found[q][form] = found[q].get(form, 0.0) + chance
    return list(found)


def expected_distinct(chances: Mapping[str, float], rollouts: int = DISTINCT_IN) -> float:
    """How many forms ``rollouts`` independent rollouts are expected to hold: ``sum 1 - (1 - p)^n``."""
    return sum(1 - (1 - chance) ** rollouts for chance in chances.values())


def many_answers(lab: Lab, name: str, problems: Sequence[Problem]) -> dict[str, Any]:
    """Mean success probability, and mean number of different right answers in 16 rollouts, of the set ``name``."""
    chances = solution_chances(lab, problems)
    return {
        f"{name}_success": float(np.mean([sum(own.values()) for own in chances])),
        f"{name}_distinct": float(np.mean([expected_distinct(own) for own in chances])),
    }
