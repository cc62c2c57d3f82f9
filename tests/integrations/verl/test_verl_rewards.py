"""What the planner is told of a rollout, and what a prompt weighs with one of verl's own estimators."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from test_verl_session import names, session_in
from verl_cases import config_of

from allotment.integrations.verl import running, trainers, weighing
from allotment.integrations.verl.rewards import told_rewards, warn_of_rewards
from allotment.integrations.verl.trainers import AllotmentTrainerMixin
from allotment.integrations.verl.weighing import weigh
from allotment.planning import VIP, Uniform


def extra(**info) -> dict:
    return {"reward_extra_info": info, "min_global_steps": 1}


def test_a_right_answer_that_is_too_long_is_a_success() -> None:
    """DAPO's reward manager: 1 minus up to 1 of penalty, and what the answer was worth before in ``acc``."""
    scores = np.array([1.0, 0.2, -0.5, -1.0])
    extras = [extra(acc=1.0), extra(acc=True), extra(acc=np.float64(1)), extra(acc=False)]
    np.testing.assert_array_equal(told_rewards(scores, extras, "acc"), [1, 1, 1, 0])
    np.testing.assert_array_equal(told_rewards(scores, extras, None), scores)
    np.testing.assert_array_equal(told_rewards(scores, [], "acc"), scores)


def test_where_nobody_says_so_the_score_does() -> None:
    """Some rows of a batch have the key and others not; what is no share of 1 is no success."""
    extras = [extra(acc=0), extra(pred="4"), None, {}, extra(acc="yes"), extra(acc=float("nan")), extra(acc=-1.0)]
    scores = np.arange(7) + 0.25
    np.testing.assert_array_equal(told_rewards(scores, extras, "acc"), [0, *scores[1:]])
    np.testing.assert_array_equal(told_rewards(scores, [extra(right=1)] * 7, "right"), np.ones(7))


@pytest.mark.parametrize(("planner", "values", "is_warned"), [
    (VIP(budget=8), [0, 1, 1], False), (VIP(budget=8), [-1, 1], False), (VIP(budget=8), [0, 0.4, 1], True),
    (Uniform(budget=8), [0, 0.4, 1], False),
])  # fmt: skip
def test_rewards_of_many_values_are_warned_of(planner, values, is_warned, caplog) -> None:
    warn_of_rewards(np.array(values), planner, "acc")
    assert ("success_key" in caplog.text) == is_warned


def test_the_warning_comes_once(tmp_path, caplog) -> None:
    session, keys = session_in(tmp_path), [f"d/{i}" for i in range(8)]
    for step in (1, 2):
        counts = session.plan(names(step, 8), keys, step)
        session.tell(np.repeat(names(step, 8), counts).tolist(), np.linspace(0, 1, 64), [1] * 64)
    assert caplog.text.count("not two-valued") == 1


class Table:
    """TransferQueue with a few columns."""

    def __init__(self, monkeypatch, columns: dict[str, dict[str, object]]) -> None:
        self.columns = columns
        for module in (trainers, weighing):
            monkeypatch.setattr(module, "tq", self)

    def kv_batch_get(self, keys, partition_id, select_fields):
        made = {}
        for name in select_fields:
            values = [self.columns[name][key] for key in keys] if name in self.columns else None
            if values is not None and isinstance(values[0], torch.Tensor):
                made[name] = torch.nested.as_nested_tensor(values, layout=torch.jagged)
            elif values is not None:
                made[name] = np.array(values, dtype=object)
        is_plain = all(isinstance(values, torch.Tensor) for values in made.values())
        return TensorDict(made, batch_size=len(keys)) if is_plain else made

    def kv_batch_put(self, keys, partition_id, fields) -> None:
        for name, values in fields.items():
            self.columns[name].update(zip(keys, values.unbind(), strict=True))


class Stock:
    """verl's trainer after it computed advantages: all 1, of the lengths of the responses."""

    def _compute_advantage(self, batch, metrics):
        return batch


class Hooked(AllotmentTrainerMixin, Stock):
    def __init__(self, config, *, is_colocated: bool = False) -> None:
        self.config = config
        self.reward_loop_manager = SimpleNamespace(reward_loop_worker_handles=None if is_colocated else [])


def is_right(row: str) -> float:
    """Whether a rollout is: never for the first of four prompts, always for the second, else every other time."""
    if row.startswith("pad"):
        return 0.0
    uid, session, _ = row.split("_")
    return [0.0, 1.0, int(session) % 2, int(session) % 2][int(uid.split("-")[1]) % 4]


def test_the_hook_tells_success_and_weighs_prompts_alike(tmp_path, monkeypatch) -> None:
    """verl's grpo; a rollout of several outputs counts once, all its outputs with its factor."""
    session, keys = session_in(tmp_path), [f"d/{i}" for i in range(8)]
    monkeypatch.setattr(running, "_current", session)
    for step in range(1, 6):
        uids = names(step, 8)
        counts = session.plan(uids, keys, step)
        rollouts = [f"{uid}_{i}" for uid, count in zip(uids, counts, strict=True) for i in range(count)]
        rows = [f"{rollout}_{i}" for rollout in rollouts for i in range(1 + rollout.endswith("_0"))] + ["padff_0_0"]
        right = {row: is_right(row) for row in rows}
        lengths = {row: 1 + place % 3 for place, row in enumerate(rows)}
        table = Table(
            monkeypatch,
            {
                "rm_scores": {row: torch.full((lengths[row],), -0.1) for row in rows},
                "response_mask": {row: torch.ones(lengths[row]) for row in rows},
                "advantages": {row: torch.ones(lengths[row]) for row in rows},
                "extra_fields": {row: extra(acc=right[row]) for row in rows},
            },
        )
        tags = [{"is_padding": row.startswith("pad")} for row in rows]
        batch = SimpleNamespace(keys=rows, tags=tags, partition_id="train")
        assert Hooked(config_of("algorithm.adv_estimator=grpo"))._compute_advantage(batch, {}) is batch
        for uid, count in zip(uids, counts, strict=True):
            for row in rows:
                if row.startswith(uid):
                    expected = 64 / (8 * count)
                    torch.testing.assert_close(table.columns["advantages"][row], torch.full((lengths[row],), expected))
        assert torch.equal(table.columns["advantages"]["padff_0_0"], torch.ones(lengths["padff_0_0"]))
        of_prompt = [[right[f"{rollout}_0"] for rollout in rollouts if rollout.startswith(uid)] for uid in uids]
        assert session.take_figures()["success"] == pytest.approx(np.mean([np.mean(own) for own in of_prompt]))
    believed = session.planner.predictor.predict(keys).success_probability()
    assert believed[1::4].min() > 0.7 > 0.3 > believed[::4].max()
    assert len(set(counts)) > 1


def test_a_reward_model_beside_the_actor_says_success_in_a_column(tmp_path, monkeypatch) -> None:
    """verl writes its ``reward_extra_info`` as columns; a column of the data set of that name is no such thing."""
    monkeypatch.setattr(running, "_current", session_in(tmp_path))
    scores = {"rm_scores": torch.ones(2) / 8, "response_mask": torch.ones(2), "acc": np.float64(1), "extra_fields": {}}
    Table(monkeypatch, {name: {"a_0_0": value} for name, value in scores.items()})
    for is_colocated, told in ((True, 1.0), (False, 0.25)):
        trainer = Hooked(config_of(), is_colocated=is_colocated)
        assert trainer._told("train", ["a_0_0"])[0].tolist() == [told]


def test_equal_groups_are_left_to_the_last_bit(monkeypatch) -> None:
    monkeypatch.setattr(weighing, "tq", None)  # nothing is read or written
    weigh(SimpleNamespace(keys=["a_0_0"]), ["a_0_0"], np.ones(1))
