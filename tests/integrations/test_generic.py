"""The three calls for trainers without an adapter."""

from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from allotment.errors import ConfigError, InvalidInputError, RewardMismatchError
from allotment.integrations.generic import counts_of, expand, group_advantages, plan
from allotment.planning import VIP
from allotment.planning.planner import Planner


class Ones(Planner):
    """One rollout a prompt, as a user's own planner may ask."""

    def _check_settings(self) -> None: ...

    def _open(self, ids, budget):
        return self._new_plan(ids, np.ones(len(ids), dtype=np.int64))

    def _observe(self, outcome) -> None: ...

    _parts: ClassVar = {}


def test_from_prompts_to_advantages_and_back() -> None:
    planner, prompts = VIP(budget=64), [f"p{i}" for i in range(8)]
    random = np.random.default_rng(0)
    for _ in range(3):
        asked = plan(planner, prompts)
        rows = expand(prompts, counts_of(asked, prompts))
        rewards = (random.random(len(rows)) < 0.5).astype(float)
        advantages = group_advantages(rewards, rows, "rloo")
        for prompt in prompts:
            own = [a for a, row in zip(advantages, rows, strict=True) if row == prompt]
            assert len(own) == counts_of(asked, [prompt])[0]
            assert sum(own) == pytest.approx(0, abs=1e-12)
        planner.tell(asked, rewards, rows)
    assert len(rows) == 64


def test_prompts_left_out_have_count_0() -> None:
    planner = VIP(budget=64, bounds=(3, 40))
    asked = plan(planner, range(8), budget=64, trained_prompts=3)
    counts = counts_of(asked, range(8))
    assert counts.count(0) == 5
    assert sum(counts) == 64
    assert len(expand(range(8), counts)) == 64


def test_a_group_of_one_is_refused_and_nothing_stays_open() -> None:
    planner = Ones(budget=4, bounds=(1, 1))
    with pytest.raises(RewardMismatchError, match="each count 0 or from 2 on"):
        plan(planner, range(4))
    assert not planner.open_plans


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.floats(-3, 3)), min_size=1, max_size=30))
def test_advantages_by_hand(pairs) -> None:
    ids, rewards = [i for i, _ in pairs], np.array([r for _, r in pairs])
    for estimator in ("rloo", "dr_grpo", "grpo"):
        plain = group_advantages(rewards, ids, estimator, "rollout")
        weighted = group_advantages(rewards, ids, estimator, "prompt")
        for row, prompt in enumerate(ids):
            own = np.array([r for i, r in pairs if i == prompt])
            n = len(own)
            by_hand = rewards[row] - own.mean()
            if estimator == "rloo":
                by_hand *= n / (n - 1) if n > 1 else 0.0
            if estimator == "grpo":
                by_hand /= (own.std(ddof=1) if n > 1 else 0.0) + 1e-4
            assert plain[row] == pytest.approx(by_hand, abs=1e-7)
            assert weighted[row] == pytest.approx(by_hand * len(ids) / (len(set(ids)) * n), abs=1e-6)


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(InvalidInputError, match="2 rows, 1 counts"):
        expand(["a", "b"], [3])
    with pytest.raises(InvalidInputError, match="the least -1"):
        expand(["a"], [-1])
    with pytest.raises(ConfigError, match="no such weighting"):
        group_advantages([0.0, 1.0], ["a", "a"], weighting="token")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="Unknown advantage"):
        group_advantages([0.0, 1.0], ["a", "a"], "gae")
