import numpy as np
import pytest
import torch

from allotment.errors import ConfigError, InvalidInputError
from allotment.lab.config import TrainConfig
from allotment.lab.generation import Rollouts
from allotment.lab.judges import named_rewards
from allotment.lab.train import Trainer
from allotment.run_logs.directory import RunDirectory

ALL = ("correctness", "format", "length")


def config(**changes):
    return TrainConfig(**{"steps": 2, "prompts_per_step": 8, "planner": "uniform", "regime": "short"} | changes)


def rollouts_of(lab, completions, rewards):
    """As if the policy had written them; a completion without ``$`` runs into the length limit."""
    length = lab.regime.max_tokens
    rows = [lab.tokenizer.encode_answer(text.removesuffix("$"))[: None if "$" in text else -1] for text in completions]
    tokens_NT = torch.tensor([row + [lab.tokenizer.pad] * (length - len(row)) for row in rows])
    mask_NT = torch.tensor([[t < len(row) for t in range(length)] for row in rows])
    answers = tuple(lab.regime.answer_of(text[:-1]) if "$" in text else None for text in completions)
    zeros_NT = torch.zeros(mask_NT.shape)
    groups = torch.arange(len(rows))
    return Rollouts(groups, tokens_NT, mask_NT, np.array(rewards), zeros_NT, zeros_NT, answers)


def test_rewards_by_hand(scratchpad):
    cases = {
        "abcde=7$": (1.0, 1, 1),  # eight tokens, the end counts
        "abcde=42$": (0.0, 1, 0),
        "bcddf=7$": (1.0, 0, 1),  # no vowel
        "bcdff=a$": (0.0, 0, 1),  # only in the answer
        "abcde7$": (0.0, 0, 1),  # no answer
        "abcde=7777777777": (0.0, 0, 0),  # no end
        "abcde=a$": (0.0, 1, 1),  # the answer is none of the scratchpad's business
    }
    rollouts = rollouts_of(scratchpad, cases, [correct for correct, _, _ in cases.values()])
    made = named_rewards(("length", "correctness", "format"), scratchpad, rollouts, 8)
    assert list(made) == ["length", "correctness", "format"]
    expected = dict(zip(ALL, np.array(list(cases.values())).T.tolist(), strict=True))
    assert {name: reward_N.tolist() for name, reward_N in made.items()} == expected


def test_without_a_scratchpad_the_format_is_an_answer_that_ends(short):
    rollouts = rollouts_of(short, ["77$", "", "12345678901"], [1.0, 0.0, 0.0])
    assert named_rewards(("format",), short, rollouts, 8)["format"].tolist() == [1, 0, 0]


def test_on_shipped_policies_no_reward_is_always_or_never_reached(scratchpad, mixture):
    rollouts = scratchpad.rollouts(mixture.pool[::6], [4] * len(mixture.pool[::6]), torch.Generator().manual_seed(0))
    for reward_N in named_rewards(ALL, scratchpad, rollouts, TrainConfig().length_target).values():
        assert 0.3 < reward_N.mean() < 0.9


@pytest.mark.parametrize("planner", ["vip", "vip-second-look"])
def test_several_rewards_are_logged_by_name_as_means_over_prompts(small, planner):
    settings = config(planner=planner, rewards=ALL, length_target=3)
    trainer = Trainer(settings, mixture=small)
    for step in (1, 2):
        row, _ = trainer.step(step)
        assert row["reward_correctness"] == pytest.approx(row["success"])
        assert 0 < row["reward_length"] < 1
        assert row["reward_format"] > 0.9


@pytest.mark.parametrize("name", ALL)
def test_a_single_reward_adds_nothing_to_the_log(small, name):
    row, _ = Trainer(config(rewards=(name,), length_target=3), mixture=small).step(1)
    assert not [key for key in row if key.startswith("reward_")]


def test_without_gdpo_rewards_are_added_up(small):
    trainer = Trainer(config(rewards=ALL, length_target=3, objective=("dr_grpo",)), mixture=small)
    rollouts = trainer.generate(trainer.batch(1), [6] * 8, torch.Generator().manual_seed(0))
    made = named_rewards(ALL, trainer.lab, rollouts, 3)
    for q in range(8):
        of_q = rollouts.group_N == q
        total = sum(reward_N[of_q] for reward_N in made.values())
        torch.testing.assert_close(trainer.advantages(rollouts)[of_q], total - total.mean())


def test_the_planner_is_told_correctness_alone(small):
    told = []
    trainer = Trainer(config(rewards=("length", "format")), mixture=small)
    tell = trainer.planner.tell
    trainer.planner.tell = lambda plan, rewards, *rest, **more: (
        told.append(rewards) or tell(plan, rewards, *rest, **more)
    )
    row, _ = trainer.step(1)
    assert told[0].mean() == pytest.approx(row["success"])


@pytest.mark.parametrize("change", [{}, {"length": torch.full((64,), float("nan"))}])
def test_gdpo_refuses_rewards_that_change_and_rewards_that_are_not_finite(small, monkeypatch, change):
    trainer = Trainer(config(rewards=ALL, objective=("gdpo",)), mixture=small)
    trainer.step(1)

    def other(*given):
        made = named_rewards(*given)
        del made["length"]
        return made | change

    monkeypatch.setattr("allotment.lab.train.named_rewards", other)
    monkeypatch.setattr(trainer, "_reward_metrics", lambda rollouts: {})
    before = [p.clone() for p in trainer.lab.policy.parameters()]
    with pytest.raises(InvalidInputError, match="'length' cannot be used" if change else "not those of the settings"):
        trainer.step(2)
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.lab.policy.parameters(), strict=True))


def test_a_run_does_not_resume_with_other_rewards(tmp_path):
    settings = config(rewards=ALL, objective=("gdpo",))
    RunDirectory.create(tmp_path, settings)
    assert RunDirectory.resume(tmp_path, settings)
    with pytest.raises(ConfigError, match="rewards"):
        RunDirectory.resume(tmp_path, config(rewards=ALL[:2], objective=("gdpo",)))


def test_settings_that_name_no_reward_of_the_run_are_refused_before_it_starts(small):
    settings = config(rewards=ALL[:2], objective=("gdpo",), objective_settings={"gdpo": {"weights": {"length": 2}}})
    with pytest.raises(ConfigError, match="'length'"):
        Trainer(settings, mixture=small)


def test_every_reward_once():
    with pytest.raises(ConfigError, match="each reward once"):
        TrainConfig.from_values({"rewards": ("length", "length")}, "here")
