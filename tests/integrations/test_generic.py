"""The three calls for trainers without an adapter."""

from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from allotment.errors import ConfigError, InvalidInputError, RewardMismatchError
from allotment.integrations.generic import counts_of, expand, group_advantages, plan
from allotment.planning import VIP, Planner, make_planner
from allotment.planning.contract import Contract


class Ones(Planner):
    """One rollout a prompt, as a user's own planner may ask."""

    def __init__(self, *, bounds, **common) -> None:
        super().__init__(**common)
        self.bounds = bounds

    def _open(self, ids, budget):
        return self._new_plan(ids, np.ones(len(ids), dtype=np.int64))

    def _observe(self, outcome) -> None: ...

    _parts: ClassVar = {}


class Believer(Ones):
    """One rollout of the first prompt and three of the others, with weights and baselines."""

    @property
    def contract(self):
        return Contract(weights=True, baselines=True)

    def _open(self, ids, budget):
        counts = np.array([1] + [3] * (len(ids) - 1))
        place = np.arange(len(ids))
        more = {"weights": 1.0 + place, "baselines": place / 4, "baseline_shares": place / 2, "candidates": 10}
        return self._new_plan(ids, counts, **more)


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


def test_weights_and_baselines_of_a_plan_by_hand() -> None:
    """Three prompts of 10 candidates, 7 rollouts; the advantages in any order of rows."""
    asked = plan(Believer(budget=7, bounds=(1, 3)), list("abc"))
    rows = list("cbacbbc")
    rewards = np.array([1.0, 0.0, 1.0, 0.0, 1.0, 0.5, 0.0])
    b, c = [0.0, 1.0, 0.5], [1.0, 0.0, 0.0]
    against = {
        "a": [1.0 - 0.0],
        "b": [r - 0.5 * 0.25 - 0.5 * (sum(b) - r) / 2 for r in b],
        "c": [r - 0.5 for r in c],
    }
    found = group_advantages(rewards, rows, asked=asked)
    for q, prompt in enumerate("abc"):
        weight = (1 + q) * 3 / 10 * 7 / (3 * asked.counts[q])
        own = [a for a, row in zip(found, rows, strict=True) if row == prompt]
        np.testing.assert_allclose(own, weight * np.array(against[prompt]), atol=1e-12)
    with pytest.raises(InvalidInputError, match="'d'"):
        group_advantages([1.0], ["d"], asked=asked)


@pytest.mark.parametrize("name", ["dynamic-pruning", "vip-tokens"])
def test_a_planner_that_does_not_spend_a_budget_exactly_may_be_given_one(name) -> None:
    planner = make_planner(name, budget=64 if name == "dynamic-pruning" else 2048, bounds=(3, 32))
    for budget in (64, 48):
        asked = plan(planner, range(8), budget=budget * (1 if name == "dynamic-pruning" else 32))
        ids = [prompt for prompt in range(8) for _ in range(counts_of(asked, [prompt])[0])]
        planner.tell(asked, [i % 2 for i in range(len(ids))], ids, lengths=[32] * len(ids))


@pytest.mark.parametrize("planner", [VIP(budget=64, rounds=2), make_planner("reinforce-ada-est", budget=64)])
def test_what_these_functions_cannot_carry_out_is_refused_by_name(planner) -> None:
    with pytest.raises(ConfigError, match=rf"(?s){planner.name}.*mopps"):
        plan(planner, range(8))
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
