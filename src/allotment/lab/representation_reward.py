"""A judge that reads the policy's own hidden states: fitted to verified rollouts of other prompts, before the run."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from allotment.errors import ConfigError
from allotment.lab.checkpoint import load_optimizer, load_parameters, optimizer_state, parameters_state
from allotment.lab.generation import Lab, Pooling, Rollouts, seeded_generator
from allotment.lab.judges import Judged
from allotment.lab.step_rows import Metrics
from allotment.learning.objective import ObjectiveEntry, ObjectiveRow
from allotment.methods.objectives.pairs import preference_pairs
from allotment.methods.objectives.representation import RepresentationProbe, fit_probe, probe_optimizer, probe_step
from allotment.state import State, check_state
from allotment.tasks.mixture import Mixture, Problem
from allotment.types import FloatArray, IntArray

Compare = Literal["prompt", "any", "both"]
States = Literal["current", "start"]

_TOGETHER = 256
"""Prompts whose rollouts are drawn at once."""


@dataclass(frozen=True)
class Labelled:
    """N rollouts with the verifier's labels and the hidden states they have under the policy that drew them."""

    states_NLH: Tensor
    """[N, L, H]"""
    right_N: FloatArray
    """[N] 1.0 where the verifier agrees."""
    prompt_N: IntArray
    """[N] number of the prompt."""

    def take(self, chosen_N: npt.NDArray[np.bool_]) -> Labelled:
        """The rollouts where ``chosen_N`` [N] is True."""
        states_NLH = self.states_NLH[torch.from_numpy(chosen_N)]
        return Labelled(states_NLH, self.right_N[chosen_N], self.prompt_N[chosen_N])


def labelled_rollouts(lab: Lab, problems: Sequence[Problem], n: int, pooling: Pooling, seed: int) -> Labelled:
    """``n`` rollouts of each problem; a function of the policy and the seed."""
    states, right, prompts = [], [], []
    for first in range(0, len(problems), _TOGETHER):
        part = problems[first : first + _TOGETHER]
        rollouts = lab.rollouts(part, np.full(len(part), n), seeded_generator(seed, 8, first))
        states.append(lab.representations(part, rollouts, pooling))
        right.append(rollouts.rewards_N)
        prompts.append(rollouts.group_N.numpy() + first)
    return Labelled(torch.cat(states), np.concatenate(right), np.concatenate(prompts))


def labelled_pairs(labelled: Labelled, compare: Compare, most: int, seed: int) -> tuple[Tensor, Tensor]:
    """Hidden states of right rollouts and of wrong ones to compare, both [P, L, H].

    ``prompt``: of one prompt each. ``any``: of any two prompts. ``both``: half of the pairs so, half so; but for this
    no rollout stands in two pairs. ``most``: pairs that are kept, at random.
    """
    if compare == "both":
        within = labelled_pairs(labelled, "prompt", most // 2, seed)
        between = labelled_pairs(labelled, "any", most - most // 2, seed)
        return torch.cat([within[0], between[0]]), torch.cat([within[1], between[1]])
    random = np.random.default_rng([seed, 8])
    order_N = random.permutation(len(labelled.right_N))
    groups = [order_N]
    if compare == "prompt":
        groups = [order_N[labelled.prompt_N[order_N] == q] for q in np.unique(labelled.prompt_N)]
    chosen, rejected = [], []
    for rows in groups:
        right, wrong = (rows[labelled.right_N[rows] == label] for label in (1, 0))
        pairs = min(len(right), len(wrong))
        chosen.append(right[:pairs])
        rejected.append(wrong[:pairs])
    kept_P = random.permutation(sum(map(len, chosen)))[:most]
    right_P, wrong_P = np.concatenate(chosen)[kept_P], np.concatenate(rejected)[kept_P]
    return labelled.states_NLH[torch.from_numpy(right_P)], labelled.states_NLH[torch.from_numpy(wrong_P)]


def balanced(problems: Sequence[Problem], n: int, seed: int) -> list[Problem]:
    """``n`` of the problems, at random, as many of each level as there are; of small levels all."""
    place_of: dict[str, int] = {}
    ranked: list[tuple[int, int]] = []
    for i in np.random.default_rng([seed, 9]).permutation(len(problems)).tolist():
        place = place_of.get(problems[i].level, 0)
        place_of[problems[i].level] = place + 1
        ranked.append((place, i))
    return [problems[i] for _, i in sorted(ranked, key=lambda entry: entry[0])[:n]]


def fitted_probe(
    labelled: Labelled, compare: Compare, pairs: int, epochs: int, learning_rate: float, seed: int
) -> tuple[RepresentationProbe, float]:
    """A probe, and the score above which as many rollouts of the prompts held out stand as are right. Raises
    ConfigError: too few prompts have right and wrong rollouts.

    A tenth of the prompts is held out; a tenth of the ``pairs``, at most, is from there and chooses the epoch.
    """
    prompts = np.random.default_rng([seed, 10]).permutation(np.unique(labelled.prompt_N))
    held_out_N = np.isin(labelled.prompt_N, prompts[: -(-len(prompts) // 10)])
    learnt, held_out = labelled.take(~held_out_N), labelled.take(held_out_N)
    most = -(-pairs // 10)
    chosen_PLH, rejected_PLH = labelled_pairs(learnt, compare, pairs - most, seed)
    test_chosen_PLH, test_rejected_PLH = labelled_pairs(held_out, compare, most, seed)
    train, test = len(chosen_PLH), len(test_chosen_PLH)
    if not (train and test):
        wrong = "has no pairs to learn from: its prompts are one-sided, all rollouts right or all wrong"
        got, fix = f"{train} pairs to learn from, {test} held out", "label more prompts, or draw more rollouts of each"
        raise _refused(wrong, got, "at least one of each", fix)
    probe = RepresentationProbe(*labelled.states_NLH.shape[1:])
    fit_probe(
        probe,
        torch.cat([chosen_PLH, test_chosen_PLH]),
        torch.cat([rejected_PLH, test_rejected_PLH]),
        torch.arange(train + test) >= train,
        epochs=epochs,
        learning_rate=learning_rate,
        seed=seed,
    )
    with torch.no_grad():
        scores_N = probe(held_out.states_NLH).double().numpy()
    return probe, float(np.quantile(scores_N, 1 - held_out.right_N.mean()))


class RepresentationReward:
    """The representation-based reward (arXiv 2503.10093) in the verifier's place.

    At the start, rollouts of the starting policy on prompts of the warm start, which are not trained on, are labelled
    by the verifier, and a probe (:class:`~allotment.methods.objectives.representation.RepresentationProbe`) is fitted
    to pairs of a right and a wrong one. The verifier is not asked again. A rollout's reward is ``sigmoid(s) - 1/2``; a
    success is s > 0.

    The default is not the paper's, ``pooling="last"``, ``compare="prompt"``, ``states="current"``, with which the
    policy is scored better while the verifier's success falls (docs/experiments/).

    Deviations: one pooling of hidden states for fitting and scoring, where the released code fits on means (padding
    included) and scores last tokens. The loss leaves the zero of s open: s is shifted so that among rollouts of
    labelled prompts that the fit has not seen, as many are above 0 as are right. Labelled prompts are balanced over
    levels; whole prompts are held out.

    With ``co_loss`` the probe takes a step of the margin loss on the best and the worst rollout of each prompt after
    every step of the policy. Their order is the probe's own: it confirms itself. Off by default, on in the paper.
    """

    KIND = "RepresentationReward"

    def __init__(
        self,
        lab: Lab,
        mixture: Mixture,
        *,
        seed: int = 0,
        pooling: Pooling = "choice",
        compare: Compare = "both",
        states: States = "start",
        co_loss: bool = False,
        prompts: int = 1100,
        rollouts: int = 8,
        fit_pairs: int = 2000,
        epochs: int = 50,
        learning_rate: float = 1e-3,
    ) -> None:
        """Draw, label, fit: some seconds. ConfigError on a setting that is not allowed, or where the warm start has too
        few prompts, or one-sided ones alone.

        Args:
            lab: the policy to be trained, as it is at the start.
            mixture: whose ``warm_start`` is labelled.
            seed: of prompts, rollouts and pairs.
            pooling: of hidden states: those at the ``last`` token (the paper), their ``mean`` over prompt and
                completion, or their ``choice`` (:meth:`~allotment.lab.generation.Lab.representations`).
            compare: pairs of one ``prompt`` (the paper), of ``any`` two, or half of ``both``.
            states: whose hidden states are scored: those of the policy at the ``start``, or the ``current`` one's (the
                paper).
            co_loss: whether the probe is trained on.
            prompts: that are labelled.
            rollouts: of each of them.
            fit_pairs: that the probe is fitted to, at most, those held out included.
            epochs: of the fit.
            learning_rate: of Adam, in the fit and of the co-loss.
        """
        named = {"pooling": (pooling, Pooling), "compare": (compare, Compare), "states": (states, States)}
        for name, (value, names) in named.items():
            if value not in get_args(names):
                raise _refused(f"cannot have this {name}", repr(value), ", ".join(get_args(names)), "choose one")
        if not (rollouts >= 2 and fit_pairs >= 2 and epochs >= 1 and 0 < learning_rate < float("inf")):
            got = f"rollouts {rollouts}, fit_pairs {fit_pairs}, epochs {epochs}, learning_rate {learning_rate}"
            raise _refused("cannot have these settings", got, "2, 2, 1 or more, a finite number above 0", "correct it")
        if not 2 <= prompts <= len(mixture.warm_start):
            got = f"{prompts} wanted, {len(mixture.warm_start)} in the mixture's warm_start"
            fix = "set prompts, or take a regime whose task has prompts for a warm start (countdown has none)"
            raise _refused("needs labelled prompts that are not trained on", got, "from 2 to as many as there are", fix)
        self.pooling, self.co_loss = pooling, co_loss
        self._scored = deepcopy(lab) if states == "start" else lab
        problems = balanced(mixture.warm_start, prompts, seed)
        labelled = labelled_rollouts(lab, problems, rollouts, pooling, seed)
        self.probe, self.shift = fitted_probe(labelled, compare, fit_pairs, epochs, learning_rate, seed)
        self._optimizer = probe_optimizer(self.probe, learning_rate)

    @torch.no_grad()
    def scores(self, problems: Sequence[Problem], rollouts: Rollouts) -> Tensor:
        """[N] the shifted scores s."""
        states_NLH = self._scored.representations(problems, rollouts, self.pooling)
        scores_N: Tensor = self.probe(states_NLH) - self.shift
        return scores_N

    def judge(self, problems: Sequence[Problem], rollouts: Rollouts) -> Judged:
        """Rewards in (-1/2, 1/2), and whether they are above 0; InvalidInputError if a score is not finite."""
        scores_N = self.scores(problems, rollouts).double()
        return Judged((scores_N.sigmoid() - 0.5).numpy(), (scores_N > 0).double().numpy())

    def learn(self, problems: Sequence[Problem], rollouts: Rollouts) -> Metrics:
        """The co-loss, where it is on.

        Metrics: ``probe_loss`` before the step; ``probe_gap`` between the scores of best and worst; means over prompts.
        """
        if not self.co_loss:
            return {}
        states_NLH = self._scored.representations(problems, rollouts, self.pooling)
        with torch.no_grad():
            scores_N = self.probe(states_NLH)
        pairs = preference_pairs(scores_N, rollouts.group_N, "extreme")
        if not len(pairs):
            return {"probe_loss": 0.0, "probe_gap": 0.0}
        gap = (scores_N[pairs.chosen_P] - scores_N[pairs.rejected_P]).mean().item()
        loss = probe_step(self.probe, self._optimizer, states_NLH[pairs.chosen_P], states_NLH[pairs.rejected_P])
        return {"probe_loss": loss, "probe_gap": gap}

    def state_dict(self) -> State:
        """The probe, its moments, the shift; what it was fitted to is not needed again."""
        return {
            "kind": self.KIND,
            "probe": parameters_state(self.probe),
            "optimizer": optimizer_state(self._optimizer),
            "shift": self.shift,
        }

    def load_state_dict(self, state: State) -> None:
        """Take over what :meth:`state_dict` gave."""
        check_state(state, self.KIND, ("probe", "optimizer", "shift"))
        load_parameters(self.probe, state["probe"])
        load_optimizer(self._optimizer, state["optimizer"])
        self.shift = float(state["shift"])


def _refused(wrong: str, got: str, allowed: str, fix: str) -> ConfigError:
    return ConfigError(f"the representation-based reward {wrong}", got=got, allowed=allowed, fix=fix)


ENTRY = ObjectiveEntry(
    "reward",
    RepresentationReward,
    preferences=True,
    row=ObjectiveRow(
        "reward: a probe of the starting policy's hidden states, fitted to verified pairs of other prompts, in the "
        "verifier's place; loss: conservative DPO on best and worst of n",
        "confidence 1: DPO on the probe's order; `train=policy-gradient`: advantages of the probe's reward",
        "arXiv 2503.10093 (abstract) and its code",
        "one pooling in training and scoring (the code has two); policy and reference are two models (the code binds "
        "one); states of the start and of the tokens drawn, pairs within and between prompts (the paper's by name); "
        "the zero of the score is calibrated",
    ),
)
