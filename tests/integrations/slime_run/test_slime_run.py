"""20 steps on slime's code path, and a break in the middle."""

import os

import numpy as np
import pytest

if not os.environ.get("SLIME_SOURCE"):
    pytest.skip("no slime: set SLIME_SOURCE to its source tree (make test-slime)", allow_module_level=True)

from slime.observability import logging_utils
from slime.observability.metric_utils import compute_pass_rate
from slime_cases import BATCH, MEAN, arguments, lines, manager, places, session, step


@pytest.fixture
def tracked(monkeypatch):
    """What slime would send to its tracking."""
    kept = []
    monkeypatch.setattr(logging_utils, "log", lambda args, metrics, step_key: kept.append(dict(metrics)))
    return kept


def check_rewards(data, groups) -> None:
    """Every group's sum, and each of its rewards recomputed."""
    for group in groups:
        raw, got = (np.array(data[name])[group] for name in ("raw_reward", "rewards"))
        by_hand = (raw - raw.mean()) / (raw.std(ddof=1) + 1e-6) * MEAN / len(group)
        np.testing.assert_allclose(got, by_hand, rtol=1e-5, atol=1e-6)
        assert abs(got.sum()) < 1e-5


def check_pass_rates(figures, data, groups) -> None:
    """Those of slime's own estimate, group by group."""
    smallest = min(map(len, groups))
    rates = {name.partition("/")[2]: rate for name, rate in figures.items() if name.startswith("passrate/")}
    assert list(rates) == [f"pass@{k}" for k in (1, 2, 4, 8) if k <= smallest]
    for name, rate in rates.items():
        own = [compute_pass_rate([data["raw_reward"][p] for p in group], len(group))[name] for group in groups]
        assert rate == pytest.approx(np.mean(own), abs=1e-12)


def test_twenty_steps(tmp_path, tracked) -> None:
    """Three epochs and a half: at their ends a prompt may stand in a batch twice, and has two groups."""
    args = arguments(tmp_path)
    made, counts = manager(args), []
    for rollout_id in range(20):
        tracked.clear()
        data = step(made, rollout_id)
        assert data["sample_indices"] == list(range(rollout_id * BATCH * MEAN, (rollout_id + 1) * BATCH * MEAN))
        assert len(set(data["rollout_ids"])) == len(data["rewards"]) == sum(args.sizes) == BATCH * MEAN
        assert len(args.sizes) == BATCH
        for group in places(args):
            assert len({int(data["tokens"][place][1]) for place in group}) == 1
        check_rewards(data, places(args))
        figures = {name: value for metrics in tracked for name, value in metrics.items()}
        assert figures["rollout/step"] == rollout_id
        assert figures["allotment/budget"] == BATCH * MEAN
        check_pass_rates(figures, data, places(args))
        counts.append(args.sizes)
    assert not session(args).planner.open_plans
    assert max(map(max, counts[10:])) >= MEAN + 3
    assert min(map(min, counts[10:])) == 3
    log = lines(tmp_path)
    assert len(log) == 20 * BATCH
    assert sum(row["n"] for row in log) == 20 * BATCH * MEAN


def test_a_uniform_plan_is_slimes_own_to_the_last_bit(tmp_path, tracked, monkeypatch) -> None:
    from slime.rollout import sglang_rollout

    async def no_workers(url):
        return {"workers": []}

    monkeypatch.setattr(sglang_rollout, "get", no_workers)  # the router, which is asked who is to stop
    for number, flags in enumerate(((), ("--disable-grpo-std-normalization",))):
        stock = manager(arguments(tmp_path / f"stock{number}", *flags, own=False))
        ours = manager(arguments(tmp_path / f"ours{number}", *flags, planner="uniform"))
        for rollout_id in range(4):  # over the end of an epoch
            tracked.clear()
            theirs, own = step(stock, rollout_id), step(ours, rollout_id)
            assert str(theirs) == str(own)
            rates = compute_pass_rate(theirs["raw_reward"], MEAN, BATCH)
            found = {k: v for metrics in tracked for k, v in metrics.items() if k.startswith("passrate/")}
            assert found == pytest.approx({f"passrate/{k}": v for k, v in rates.items()}, abs=1e-12)


def test_a_resumed_run_is_the_same_to_the_last_bit(tmp_path, tracked) -> None:
    made = manager(arguments(tmp_path, prompt_id="id"))
    for rollout_id in range(8):
        if rollout_id == 4:
            made.save(3)
        before = step(made, rollout_id)
    log = lines(tmp_path)
    again = manager(arguments(tmp_path, load=str(tmp_path / "checkpoints"), prompt_id="id"))
    again.load(3)
    for rollout_id in range(4, 8):
        after = step(again, rollout_id)
    assert str(before) == str(after)
    assert lines(tmp_path) == log


def test_beliefs_survive_another_n_and_batch(tmp_path, tracked) -> None:
    args = arguments(tmp_path)
    made = manager(args)
    for rollout_id in range(4):
        step(made, rollout_id)
    made.save(3)
    names = sorted({row["prompt_id"] for row in lines(tmp_path)})
    believed = session(args).planner.predictor.predict(names)
    flags = ("--rollout-batch-size", 8, "--n-samples-per-prompt", 6, "--global-batch-size", 48)
    other = arguments(tmp_path, *flags, load=str(tmp_path / "checkpoints"), planner_kwargs={"bounds": [3, 20]})
    again = manager(other)
    again.load(3)
    kept = session(other).planner.predictor.predict(names)
    assert (believed.mean == kept.mean).all()
    assert np.ptp(kept.mean) > 1
    assert len(step(again, 4)["rewards"]) == session(other).planner.budget == 48


def test_a_checkpoint_without_a_planner_is_warned_of(tmp_path, tracked, caplog) -> None:
    args = arguments(tmp_path, load=str(tmp_path))
    made = manager(args)
    made.load(5)
    assert "starts without a record" in caplog.text
    assert made.data_source.session.told_batches == 6
