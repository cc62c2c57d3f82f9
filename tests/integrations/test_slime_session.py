"""The session behind slime's hooks, without slime: sums, group sums, what is told, duplicates, breaks, refusals."""

from types import SimpleNamespace

import numpy as np
import pytest

from allotment.integrations.fitting import fitted_planner
from allotment.integrations.slime.checks import SLIME
from allotment.integrations.slime.rewards import rollouts_of
from allotment.integrations.slime.session import PATIENCE, Session
from allotment.integrations.slime.settings import Batch, Settings, SlimeSizes
from allotment.planning import VIP

PROMPTS, MEAN = 16, 8
ARGS = SimpleNamespace()
RATE = np.linspace(0, 1, 40)


class Sample(SimpleNamespace):
    """What the adapter reads of a sample of slime's."""

    rollout_id, index, status = None, 0, "completed"

    def get_reward_value(self, args):
        return self.reward


def session(folder=None, planner=None, **chosen):
    settings = Settings(**chosen)
    batch = Batch(PROMPTS, MEAN, settings.candidates or PROMPTS)
    return Session(planner or VIP(budget=batch.budget, bounds=(3, 32)), settings, batch, std=True, folder=folder)


def draw(step, size=PROMPTS):
    keys = np.random.default_rng([5, step]).choice(len(RATE), size=size, replace=False)
    return keys.tolist(), list(range(step * 100, step * 100 + size))


def came(keys, groups, counts, step):
    """Samples of all groups, in an order of their own."""
    chance = np.random.default_rng([9, step])
    samples = [
        Sample(
            group_index=group,
            reward=float(chance.random() < RATE[key]),
            effective_response_length=int(chance.integers(1, 9)),
        )
        for key, group, count in zip(keys, groups, counts, strict=True)
        for _ in range(count)
    ]
    return [samples[place] for place in chance.permutation(len(samples))]


def one_step(run, step, size=PROMPTS):
    keys, groups = draw(step, size)
    counts = run.plan(keys, groups, budget=PROMPTS * MEAN, trained=PROMPTS)
    samples = came(keys, groups, counts, step)
    rewards_N, figures = run.told(rollouts_of(ARGS, samples, "acc"))
    return counts, samples, rewards_N, figures


def test_twenty_steps_spend_the_budget_and_centre_every_group() -> None:
    run, largest = session(), 0
    for step in range(20):
        counts, samples, rewards_N, figures = one_step(run, step)
        assert sum(counts) == len(rewards_N) == PROMPTS * MEAN == figures["allotment/budget"]
        assert min(counts) >= 3
        for group, count in zip(draw(step)[1], counts, strict=True):
            of_group = [row for row, sample in enumerate(samples) if sample.group_index == group]
            assert len(of_group) == count
            assert abs(rewards_N[of_group].sum()) < 1e-4
        assert not run.planner.open_plans
        assert run.told_batches == step + 1
        largest = max(largest, *counts)
    assert largest > MEAN


@pytest.mark.parametrize(("weighting", "estimator"), [("prompt", "slime"), ("rollout", "slime"), ("prompt", "rloo")])
def test_every_prompt_weighs_the_same_or_every_rollout(weighting, estimator) -> None:
    run = session(prompt_weighting=weighting, estimator=estimator)
    for step in range(4):
        counts, samples, rewards_N, _ = one_step(run, step)
    for group, n in zip(draw(3)[1], counts, strict=True):
        rows = [row for row, sample in enumerate(samples) if sample.group_index == group]
        raw = np.array([samples[row].reward for row in rows])
        if estimator == "slime":
            alone = (raw - raw.mean()) / (raw.std(ddof=1) + 1e-6)
        else:
            alone = raw - (raw.sum() - raw) / (n - 1)
        factor = MEAN / n if weighting == "prompt" else 1.0
        np.testing.assert_allclose(rewards_N[rows], alone * factor, rtol=1e-5, atol=1e-6)


def test_a_joint_plan_brings_its_weights_and_baselines() -> None:
    planner = fitted_planner(
        "joint", SlimeSizes(32, 2, PROMPTS), SLIME, settings={}, offered={}, estimator="dr_grpo", seed=0
    )
    run = Session(planner, Settings(candidates=36), Batch(PROMPTS, 2, 36), std=True, folder=None)
    seen: set[int] = set()
    for step in range(6):
        keys, groups = draw(step, 36)
        counts = run.plan(keys, groups, budget=32, trained=PROMPTS)
        plan = run._open[0].plan
        samples = came(keys, groups, counts, step)
        rewards_N, _ = run.told(rollouts_of(ARGS, samples, "acc"))
        factors = plan.loss_factors(len(plan.prompt_ids))
        trained = len(plan.prompt_ids)
        for row, key in enumerate(plan.prompt_ids):
            rows = [place for place, sample in enumerate(samples) if sample.group_index == groups[keys.index(key)]]
            raw, n = np.array([samples[place].reward for place in rows]), len(rows)
            others = (raw.sum() - raw) / max(n - 1, 1)
            share = 1.0 if plan.baseline_shares is None else plan.baseline_shares[row]
            weight = factors[row] * 32 / (trained * n)
            baseline = share * plan.baselines[row] + (1 - share) * others
            np.testing.assert_allclose(rewards_N[rows], weight * (raw - baseline), atol=1e-9)
        assert sum(counts) == 32
        seen |= set(counts)
    assert {0, 1} <= seen


@pytest.mark.parametrize("distinct", [1, 7, 15, 16, 17, 20])
def test_candidates_that_repeat_spend_the_whole_budget(distinct) -> None:
    run = session(candidates=20)
    keys = [place % distinct for place in range(20)]
    counts = run.plan(keys, list(range(20)), budget=PROMPTS * MEAN, trained=PROMPTS)
    assert sum(counts) == PROMPTS * MEAN
    assert sum(count > 0 for count in counts) == PROMPTS
    seen = {key for key, count in zip(keys, counts, strict=True) if count}
    assert len(seen) == min(distinct, PROMPTS)
    samples = came(keys, list(range(20)), counts, 0)
    run.told(rollouts_of(ARGS, samples, "acc"))
    assert not run.planner.open_plans


def test_a_resumed_session_is_the_same_to_the_last_bit(tmp_path) -> None:
    run = session(tmp_path / "a")
    for step in range(4):
        one_step(run, step)
    run.save(tmp_path / "planner.safetensors")
    log = (tmp_path / "a/rollouts.jsonl").read_bytes()
    (tmp_path / "b").mkdir()
    (tmp_path / "b/rollouts.jsonl").write_bytes(log)
    again = session(tmp_path / "b")
    again.load(tmp_path / "planner.safetensors", 4)
    for step in range(4, 9):
        first, second = one_step(run, step), one_step(again, step)
        assert first[0] == second[0]
        assert first[2].tobytes() == second[2].tobytes()
        assert first[3] == second[3]
    assert (tmp_path / "a/rollouts.jsonl").read_bytes() == (tmp_path / "b/rollouts.jsonl").read_bytes() != log


def test_beliefs_survive_other_bounds_and_another_budget(tmp_path) -> None:
    run = session()
    for step in range(4):
        one_step(run, step)
    run.save(tmp_path / "planner.safetensors")
    other = Session(VIP(budget=48, bounds=(2, 20)), Settings(), Batch(8, 6, 8), std=True, folder=None)
    fresh = other.planner.predictor.predict(draw(0)[0]).mean
    other.load(tmp_path / "planner.safetensors", 4)
    kept = other.planner.predictor.predict(draw(0)[0]).mean
    assert not np.allclose(fresh, kept)
    np.testing.assert_array_equal(kept, run.planner.predictor.predict(draw(0)[0]).mean)
    assert sum(other.plan(draw(9, 8)[0], draw(9, 8)[1], budget=48, trained=8)) == 48


@pytest.mark.parametrize("is_held", [False, True])
def test_a_group_that_never_comes_does_not_keep_its_plan_open_unless_held(is_held) -> None:
    run = session()
    keys, groups = draw(0)
    counts = run.plan(keys, groups, budget=PROMPTS * MEAN, trained=PROMPTS)
    held = [groups[0]] if is_held else []
    samples = [sample for sample in came(keys, groups, counts, 0) if sample.group_index != groups[0]]
    run.told(rollouts_of(ARGS, samples, "acc"), held=held)
    for step in range(1, PATIENCE + 1):
        own = draw(step)
        counts = run.plan(*own, budget=PROMPTS * MEAN, trained=PROMPTS)
        run.told(rollouts_of(ARGS, came(*own, counts, step), "acc"), held=held)
    assert run.is_open(groups[0]) is is_held
    assert len(run.planner.open_plans) == is_held


def test_weights_of_groups_that_come_later_are_those_of_the_whole_plan() -> None:
    """A joint plan told at once, and in two parts: the same, but for the number of rollouts that a mean is over."""
    found = []
    for halves in (1, 2):
        planner = fitted_planner(
            "joint", SlimeSizes(32, 2, PROMPTS), SLIME, settings={}, offered={}, estimator="dr_grpo", seed=0
        )
        run = Session(planner, Settings(candidates=36), Batch(PROMPTS, 2, 36), std=True, folder=None)
        keys, groups = draw(0, 36)
        counts = run.plan(keys, groups, budget=32, trained=PROMPTS)
        samples = sorted(came(keys, groups, counts, 0), key=lambda sample: sample.group_index)
        trained = sorted({sample.group_index for sample in samples})
        first = trained[: len(trained) // halves]
        values: list[float] = []
        for is_first in (True, False)[:halves]:
            part = [sample for sample in samples if (sample.group_index in first) is is_first]
            rewards_N, _ = run.told(rollouts_of(ARGS, part, "acc"), held=trained)
            mean = len(part) / len({sample.group_index for sample in part})
            values += (rewards_N / mean).tolist()
        found.append(np.array(values))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-12)
    assert found[0].any()
