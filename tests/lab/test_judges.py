"""A reward in the verifier's place, through the trainer."""

import pytest

from allotment.errors import ConfigError
from allotment.lab.combinations import check_combination, trains_on_preferences
from allotment.lab.config import TrainConfig
from allotment.lab.judges import Judged
from allotment.lab.objectives import judge_settings, make_objective
from allotment.lab.train import Trainer
from allotment.learning.record import Surrogate
from allotment.methods.objectives.preference import Preference


def config(**changes):
    return TrainConfig(**{"steps": 3, "prompts_per_step": 8, "planner": "vip", **changes})


class Verifier:
    """The verifier as a judge, its rewards times a factor."""

    def __init__(self, factor=1.0, flipped=False):
        self.factor, self.flipped, self.seen = factor, flipped, []

    def judge(self, problems, rollouts):
        right_N = 1 - rollouts.rewards_N if self.flipped else rollouts.rewards_N
        return Judged(self.factor * right_N, right_N)

    def learn(self, problems, rollouts):
        self.seen.append((len(rollouts), rollouts.verified_N.sum()))
        return {"judge_loss": 0.5}

    def state_dict(self):
        return {"calls": len(self.seen)}

    def load_state_dict(self, state):
        self.seen = [None] * state["calls"]


@pytest.mark.parametrize("objective", [(), ("on-policy-dpo",)])
def test_the_verifier_as_a_judge_changes_nothing(small, objective):
    plain, judged = (Trainer(config(objective=objective), mixture=small) for _ in range(2))
    judged.judge = Verifier()
    for step in range(1, 4):
        (row, rows), (judged_row, judged_rows) = plain.step(step), judged.step(step)
        assert judged_rows == rows
        assert judged_row.pop("judge_loss") == 0.5
        assert judged_row.pop("verified_success") == judged_row.pop("judged_reward") == pytest.approx(row["success"])
        assert judged_row == row


def test_planner_and_log_see_the_judge_and_the_verifier_is_a_witness(small):
    plain, judged = (Trainer(config(planner="uniform"), mixture=small) for _ in range(2))
    judged.judge = Verifier(factor=3.0, flipped=True)
    row, rows = plain.step(1)
    judged_row, judged_rows = judged.step(1)
    assert judged_row["verified_success"] == pytest.approx(row["success"])
    assert judged_row["success"] == pytest.approx(1 - row["success"])
    assert judged_row["judged_reward"] == pytest.approx(3 * judged_row["success"])
    assert [r["successes"] for r in judged_rows] == [r["n"] - r["successes"] for r in rows]
    assert judged.judge.seen == [(64, sum(r["successes"] for r in rows))]
    assert judged_row["loss"] != row["loss"]


def test_the_judge_is_saved_with_the_run(small):
    first, second = (Trainer(config(), mixture=small) for _ in range(2))
    first.judge, second.judge = Verifier(), Verifier()
    first.step(1)
    second.load_state_dict(first.state_dict(1))
    assert len(second.judge.seen) == 1


@pytest.mark.parametrize(
    ("objective", "settings", "loss"),
    [
        (("representation-reward",), {}, Preference(0.15, "dpo", "extreme", 7.5)),
        (("representation-reward",), {"beta": 0.3, "alpha": None}, Preference(0.3, "dpo", "extreme", None)),
        (("representation-reward",), {"train": "policy-gradient"}, Surrogate()),
        (("representation-reward", "on-policy-dpo"), {}, Preference()),
        (("ml-irl",), {}, Surrogate()),
        (("ml-irl", "on-policy-dpo"), {}, Preference()),
    ],
)
def test_what_a_learnt_reward_trains_by(scratchpad, objective, settings, loss):
    settings = {"representation-reward": settings} if settings else {}
    assert make_objective(config(objective=objective, objective_settings=settings), scratchpad).loss == loss


def test_settings_of_the_loss_are_not_the_judges(scratchpad):
    given = {"representation-reward": {"beta": 0.3, "alpha": 1.0, "train": "preference", "co_loss": False}}
    settings = config(objective=("representation-reward",), objective_settings=given)
    assert judge_settings(settings, "representation-reward") == {"co_loss": False}
    wrong = config(objective=("representation-reward",), objective_settings={"representation-reward": {"train": "x"}})
    with pytest.raises(ConfigError, match="cannot train so"):
        judge_settings(wrong, "representation-reward")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"objective": ("representation-reward", "ml-irl")}, "both say the reward"),
        ({"objective": ("ml-irl", "gdpo")}, "says itself what the reward is"),
        ({"objective": ("ml-irl",), "rewards": ("correctness", "length")}, "says itself what the reward is"),
        ({"objective": ("ml-irl",), "planner": "oracle"}, "oracle knows the verifier's success"),
        ({"objective": ("ml-irl",), "planner": "optpo"}, "both say what the rewards are"),
        ({"objective": ("ml-irl",), "select": "contextual-bandit"}, "other old policies"),
        ({"objective": ("representation-reward",), "aggregation": "token_mean"}, "token_mean divides it"),
        ({"objective": ("representation-reward", "jackpot")}, "made for policy gradients"),
        ({"objective": ("representation-reward", "rloo")}, "made of rewards, not of rloo's advantages"),
        ({"objective": ("representation-reward",), "planner": "vip-second-look"}, "its own advantages"),
        ({"objective": ("on-policy-dpo", "flowrl")}, "both say the loss"),
        ({"objective": ("on-policy-dpo",), "planner": "reinforce-ada"}, "its own advantages"),
        ({"objective": ("on-policy-dpo",), "select": "completion-pruning"}, "weighs single rollouts"),
    ],
)
def test_what_cannot_stand_together_is_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        check_combination(config(**changes))


def test_a_reward_that_trains_another_way_is_no_preference():
    given = {"representation-reward": {"train": "policy-gradient"}}
    settings = config(objective=("representation-reward", "jackpot"), objective_settings=given)
    check_combination(settings)
    assert not trains_on_preferences(settings)
