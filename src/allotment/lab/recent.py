"""The rollouts of a step and, for selectors that look back, of the steps before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from allotment.lab.generation import Lab, Rollouts
from allotment.selection import Scored
from allotment.state import State, decode_json, encode_json
from allotment.tasks.mixture import Problem


@dataclass(frozen=True)
class Visit:
    """One step's prompts and all their rollouts."""

    step: int
    problems: tuple[Problem, ...]
    """[Q]"""
    rollouts: Rollouts
    """Groups are rows of ``problems``."""
    first_number: int
    """Rollouts generated before this step."""


class Recent:
    """The visits of the last ``window`` steps, the newest last; to prompts of the ``pool``."""

    def __init__(self, window: int, pool: Sequence[Problem]) -> None:
        self._window, self._pool = window, pool
        self.visits: list[Visit] = []

    def add(self, visit: Visit) -> None:
        """A new step; those that leave the window are forgotten."""
        self.visits = [old for old in self.visits if old.step > visit.step - self._window] + [visit]

    @property
    def problems(self) -> list[Problem]:
        """[Q] the prompts of all visits, one after another."""
        return [problem for visit in self.visits for problem in visit.problems]

    @property
    def rollouts(self) -> Rollouts:
        """N rollouts; groups are rows of :attr:`problems`."""
        parts, first = [], 0
        for visit in self.visits:
            parts.append(replace(visit.rollouts, group_N=visit.rollouts.group_N + first))
            first += len(visit.problems)
        return Rollouts.concatenate(parts)

    def scored(self, lab: Lab, advantages_N: Tensor, progress: float) -> Scored:
        """What a selector sees; ``advantages_N`` of :attr:`rollouts`."""
        rollouts, newest = self.rollouts, self.visits[-1]
        lengths_N = rollouts.mask_NT.sum(1)
        return Scored(
            step=newest.step,
            progress=progress,
            prompt_ids=tuple(p.id for p in self.problems),
            rows_N=rollouts.group_N.numpy(),
            rewards_N=rollouts.rewards_N,
            advantages_N=advantages_N.double().numpy(),
            lengths_N=lengths_N.numpy(),
            truncated_N=lab.is_truncated(rollouts).numpy(),
            entropies_N=(rollouts.entropies_NT.sum(1) / lengths_N).double().numpy(),
            ages_Q=np.concatenate([np.full(len(v.problems), newest.step - v.step) for v in self.visits]),
            numbers_N=np.concatenate([v.first_number + np.arange(len(v.rollouts)) for v in self.visits]),
            clip_fractions_N=self._clip_fractions(lab, rollouts, len(newest.rollouts)),
            answers_N=rollouts.answers_N,
        )

    def _clip_fractions(self, lab: Lab, rollouts: Rollouts, new: int) -> np.ndarray[Any, np.dtype[np.float64]]:
        """[N] share of tokens outside [0.8, 1.2] times their old probability; the newest step's are 0 by definition."""
        fractions_N, old = np.zeros(len(rollouts)), len(rollouts) - new
        if old:
            mask_NT, group_N = rollouts.mask_NT[:old], rollouts.group_N[:old]
            with torch.no_grad():
                now_NT = lab.log_probs(self.problems, group_N, rollouts.tokens_NT[:old], mask_NT)
            moved_NT = (now_NT - rollouts.log_probs_NT[:old]).exp().sub(1).abs() > 0.2
            fractions_N[:old] = ((moved_NT & mask_NT).sum(1) / mask_NT.sum(1)).numpy()
        return fractions_N

    def state_dict(self) -> State:
        """All visits; empty where the window is one step, which needs none of them."""
        visits = self.visits if self._window > 1 else []
        return {
            str(visit.step): {
                "problems": encode_json([p.id for p in visit.problems]),
                "first_number": visit.first_number,
                "answers_N": encode_json(list(visit.rollouts.answers_N)),
                **{name: torch.as_tensor(getattr(visit.rollouts, name)).numpy().copy() for name in _ARRAYS},
            }
            for visit in visits
        }

    def load_state_dict(self, state: State) -> None:
        """Take over what :meth:`state_dict` gave."""
        by_id, self.visits = {p.id: p for p in self._pool}, []
        for step in sorted(state, key=int):
            own = state[step]
            columns: dict[str, Any] = {name: torch.from_numpy(np.array(own[name])) for name in _ARRAYS}
            columns["rewards_N"] = columns["rewards_N"].numpy()
            rollouts = Rollouts(**columns, answers_N=tuple(decode_json(own["answers_N"])))
            problems = tuple(by_id[i] for i in decode_json(own["problems"]))
            self.visits.append(Visit(int(step), problems, rollouts, own["first_number"]))


_ARRAYS = [f.name for f in fields(Rollouts) if f.name != "answers_N" and f.default is MISSING]
"""Columns that every rollout has; the others are an objective's, which looks at no earlier step."""
