import itertools
from copy import deepcopy
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch

from allotment.errors import ConfigError
from allotment.lab.checkpoint import load_lab
from allotment.lab.config import TrainConfig
from allotment.lab.judges import named_rewards
from allotment.lab.train import Trainer
from allotment.learning import grpo_advantages
from allotment.learning.losses import TokenLoss
from allotment.learning.record import TokenRecord
from allotment.methods.objectives.gdpo import GDPO
from allotment.run_logs.directory import RunDirectory
from allotment.run_logs.files import read_log

ALL = ("correctness", "format", "length")
GDPO_RUN = {"objective": ("gdpo",), "rewards": ALL, "length_target": 4}
COMBINED = {
    **GDPO_RUN,
    "planner": "vip",
    "objective": ("gdpo", "divergence-ppo"),
    "objective_settings": {"gdpo": {"weights": {"length": 0.5}}, "divergence-ppo": {"delta": 0.1, "ratio_cap": 1.1}},
    "actor": "quantised",
    "actor_settings": {"bits": 3},
}


def config(**changes):
    given = {"steps": 4, "prompts_per_step": 8, "evaluate_every": 4, "checkpoint_every": 2, "planner": "uniform"}
    return TrainConfig(**given | {"regime": "short", "learning_rate": 3e-4} | changes)


def new_trainer(mixture, **changes):
    settings = config(**changes)
    return Trainer(settings, load_lab(settings.regime), mixture)


def run(path, settings, mixture, stop_after=None):
    def on_step(row):
        if row["step"] == stop_after:
            raise KeyboardInterrupt

    directory = RunDirectory.resume(path, settings) if path.exists() else RunDirectory.create(path, settings)
    Trainer(settings, load_lab(settings.regime), mixture).run(directory, on_step)
    return read_log(path / "metrics.jsonl")


def assert_same_bytes(first, second, *names):
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


@dataclass
class Seen:
    """What the trainer gives its parts, kept for looking at; the parts themselves are the real ones."""

    records: list[TokenRecord] = field(default_factory=list)
    learnt: list = field(default_factory=list)

    @classmethod
    def of(cls, trainer):
        seen, learner, actor = cls(), trainer.learner, trainer.actor
        learner.objective = replace(learner.objective, loss=_Watched(learner.objective.loss, seen.records))
        after_step = actor.after_step
        actor.after_step = lambda learnt: seen.learnt.append(learnt) or after_step(learnt)
        return seen


@dataclass
class _Watched:
    inner: object
    records: list

    @property
    def needs(self):
        return self.inner.needs

    def loss(self, record) -> TokenLoss:
        self.records.append(record)
        return self.inner.loss(record)


# The estimator's names


@pytest.mark.parametrize("updates", [1, 3])
@pytest.mark.parametrize(("estimator", "name"), [("rloo", "rloo"), ("dr_grpo", "dr_grpo")])
def test_the_estimators_own_name_is_no_objective(tmp_path, small, estimator, name, updates):
    changes = {"estimator": estimator, "updates": updates, "planner": "vip"}
    plain = run(tmp_path / "plain", config(**changes), small)
    named = run(tmp_path / "named", config(objective=(name,), **changes), small)
    assert_same_bytes(tmp_path / "plain", tmp_path / "named", "rollouts.jsonl", "checkpoint.safetensors")
    assert [{key: line[key] for key in expected} for line, expected in zip(named, plain, strict=True)] == plain
    assert {"clip_fraction", "mean_ratio"} <= {*named[1]}


def test_dr_grpo_is_rloo_short_of_a_rollout(small):
    """With n = 8 everywhere: 7/8 of its gradient."""
    norms = [new_trainer(small, objective=(name,)).step(1)[0]["gradient_norm"] for name in ("rloo", "dr_grpo")]
    assert norms[1] == pytest.approx(norms[0] * 7 / 8, rel=1e-5)


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "gdpo"])
def test_the_step_follows_the_named_advantages(small, name):
    """The gradient is that of advantage times log-probability, summed over tokens, by 1 / (Q n_q)."""
    trainer = new_trainer(small, **GDPO_RUN | {"objective": (name,), "planner": "vip"})
    problems = trainer.batch(1)
    rollouts = trainer.generate(problems, [5, 11, 8, 8, 3, 13, 6, 10], torch.Generator().manual_seed(3))
    rewards, group_N = named_rewards(ALL, trainer.lab, rollouts, 4), rollouts.group_N
    total_N = sum(rewards.values())
    advantages_N = {
        "grpo": grpo_advantages(total_N, group_N),
        "dr_grpo": torch.cat([total_N[group_N == q] - total_N[group_N == q].mean() for q in range(8)]),
        "gdpo": GDPO().advantages(rewards, group_N),
    }[name]
    log_probs_NT = trainer.lab.log_probs(problems, group_N, rollouts.tokens_NT, rollouts.mask_NT)
    loss = sum(-(advantages_N * log_probs_NT.sum(1))[group_N == q].mean() / 8 for q in range(8))
    expected = torch.autograd.grad(loss, list(trainer.lab.policy.parameters()))
    norm = torch.sqrt(sum(g.square().sum() for g in expected)).item()
    metrics = trainer.update(problems, rollouts, trainer.advantages(rollouts), trainer.loss_weights(rollouts))
    assert metrics["gradient_norm"] == pytest.approx(norm, rel=1e-4)


# Several updates on one batch


def test_every_update_is_against_the_policy_before_the_first(small):
    trainer = new_trainer(small, updates=3, learning_rate=3e-3)
    before, seen = deepcopy(trainer.lab), Seen.of(trainer)
    row, _ = trainer.step(1)
    first, *_, last = seen.records
    (learnt,) = seen.learnt
    live = learnt.rollouts.take(learnt.advantages_N != 0)
    with torch.no_grad():
        expected_NT = before.log_probs(learnt.problems, live.group_N, live.tokens_NT, live.mask_NT)
    assert len(seen.records) == 3
    for record in seen.records:
        torch.testing.assert_close(record.old_log_probs_NT, expected_NT)
        assert not record.old_log_probs_NT.requires_grad
    assert torch.equal(first.log_probs_NT, first.old_log_probs_NT)
    ratio_NT = (last.log_probs_NT.detach() - expected_NT).exp()
    is_up_NT = (last.advantages_N > 0)[:, None]
    clipped_NT = torch.where(is_up_NT, ratio_NT > 1.2, ratio_NT < 0.8)[live.mask_NT]
    assert row["clip_fraction"] == pytest.approx(clipped_NT.float().mean().item(), abs=1e-6)
    assert row["clip_fraction"] > 0
    assert row["mean_ratio"] == pytest.approx(ratio_NT[live.mask_NT].mean().item(), abs=1e-5)


def test_a_wider_clip_is_a_setting_of_the_surrogate(small):
    settings = {"surrogate": {"clip_low": 1.0, "clip_high": 100.0}}
    rows = [
        new_trainer(small, updates=3, learning_rate=3e-3, objective_settings=given).step(1)[0]
        for given in ({}, settings)
    ]
    assert rows[0]["clip_fraction"] > rows[1]["clip_fraction"] == 0


# Combinations that are refused


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"objective": ("grpo", "gdpo")}, "grpo and gdpo both say advantages"),
        ({"objective": ("rloo", "rloo")}, "rloo and rloo both say advantages"),
        ({"objective": ("divergence-ppo", "flowrl")}, "divergence-ppo and flowrl both say the loss of a token"),
        ({"objective": ("flowrl", "jackpot")}, "jackpot is made for policy gradients"),
        ({"objective": ("capo", "flowrl")}, "capo is made for policy gradients"),
        ({"objective": ("flowrl", "gdpo")}, "gdpo is made for policy gradients"),
        ({"objective": ("flowrl",), "aggregation": "token_mean"}, "token_mean divides it by tokens"),
        ({"objective": ("divergence-ppo", "jackpot")}, "both weigh by the ratio to the rollout policy"),
        ({"objective": ("grpo",), "planner": "vip-second-look"}, "its own advantages, not grpo's"),
        ({"objective": ("gdpo",), "planner": "vip-second-look"}, "its own advantages, not gdpo's"),
        ({"objective": ("grpo",), "planner": "reinforce-ada"}, "its own advantages, not grpo's"),
        ({"objective": ("gdpo",), "planner": "reinforce-ada-est"}, "its own advantages, not gdpo's"),
        ({"objective": ("gdpo",), "planner": "optpo"}, "optpo says itself what the rewards are"),
        ({"rewards": ("correctness", "length"), "planner": "optpo"}, "optpo says itself what the rewards are"),
        ({"rewards": ("length",), "planner": "reinforce-ada"}, "reinforce-ada says itself what the rewards are"),
        ({"objective": ("gdpo",), "planner": "joint", "candidate_prompts": 16}, "its own advantages, not gdpo's"),
        ({"objective": ("grpo",), "estimator": "shrinkage"}, "its own advantages, not grpo's"),
        ({"rewards": ("correctness", "length"), "estimator": "shrinkage"}, "baselines are of correctness"),
        ({"objective": ("capo",), "select": "contextual-bandit"}, "other old policies"),
        ({"objective": ("divergence-ppo",), "select": "contextual-bandit"}, "other old policies"),
        ({"actor": "stale", "select": "contextual-bandit"}, "other old policies"),
    ],
)
def test_what_cannot_stand_together_is_refused_with_a_reason(small, changes, said):
    with pytest.raises(ConfigError, match=f"cannot be combined: .*{said}"):
        new_trainer(small, **changes)


@pytest.mark.parametrize(
    ("objective", "settings", "said"),
    [
        ((), {"gdpo": {}}, "of no objective of the run"),
        (("gdpo",), {"capo": {}}, "of no objective of the run"),
        (("gdpo",), {"gdpo": 3}, "of no objective of the run"),
        (("divergence-ppo",), {"surrogate": {"clip_low": 0.1}}, "of no objective of the run"),
        (("gdpo",), {"gdpo": {"whitened": True}}, "'gdpo' cannot be made.*whitened"),
        (("gdpo",), {"gdpo": {"rewards": ["length"]}}, "'gdpo' cannot be made.*rewards"),
        (("gdpo",), {"gdpo": {"weights": [1, 2]}}, "'gdpo' cannot be made"),
        (("gdpo",), {"gdpo": {"weights": {"correctness": "much"}}}, "'gdpo' cannot be made"),
        ((), {"surrogate": {"clip": 0.1}}, "'surrogate' cannot be made.*clip"),
    ],
)
def test_settings_that_are_of_no_part_are_refused(small, objective, settings, said):
    with pytest.raises(ConfigError, match=f"(?s){said}"):
        new_trainer(small, objective=objective, objective_settings=settings)


# GDPO beside selectors and planners


@pytest.mark.parametrize(
    ("select", "compared_with_kept"),
    [
        ({"select": "pods", "select_settings": {"keep": 4}}, True),
        ({"select": "random", "select_settings": {"keep": 4}}, True),
        ({"select": "completion-pruning"}, False),
        ({"select": "contextual-bandit"}, False),
        ({"planner": "dapo", "candidate_prompts": 16}, False),
        ({"planner": "dynamic-pruning", "select": "completion-pruning"}, False),
    ],
)
@pytest.mark.parametrize("whiten", ["rollouts", "tokens"])
def test_gdpo_compares_with_what_the_selection_says(small, select, compared_with_kept, whiten):
    """Whole groups as generated, or what is kept of them; the selection's own weights multiply the loss alone."""
    given = GDPO_RUN | select | {"objective_settings": {"gdpo": {"whiten": whiten}}}
    trainer = new_trainer(small, **given)
    seen = Seen.of(trainer)
    for step in (1, 2):
        row, _ = trainer.step(step)
        generated, kept = trainer.recent.rollouts, seen.learnt[-1].rollouts
        among = kept if compared_with_kept else generated
        rewards = named_rewards(ALL, trainer.lab, among, 4)
        expected_N = GDPO(whiten=whiten).advantages(rewards, among.group_N, among.mask_NT.sum(1))
        if not compared_with_kept:
            expected_N = expected_N[_places(kept, generated)]
        torch.testing.assert_close(seen.learnt[-1].advantages_N, expected_N)
        assert row["trained_rollouts"] == len(kept)
        assert len(kept) < len(generated) or step == 1


def _places(kept, generated):
    """Row of each kept rollout among those generated, by its tokens and log-probabilities."""
    rows = {}
    for row, key in enumerate(_keys(generated)):
        rows.setdefault(key, []).append(row)
    return torch.tensor([rows[key].pop(0) for key in _keys(kept)])


def _keys(rollouts):
    columns = (rollouts.group_N.tolist(), rollouts.tokens_NT.tolist(), rollouts.log_probs_NT.tolist())
    return [(group, *tokens, *log_probs) for group, tokens, log_probs in zip(*columns, strict=True)]


FAMILIES = [
    "vip",
    "vip-moments",
    "vip-tokens",
    "vip-paper",
    "uniform",
    "inverse-variance",
    "ridge",
    "oracle",
    "coba-rl",
    "knapsack",
    "gvm",
    "dynamic-pruning",
    "dapo",
    "mopps",
    "greso",
]


@pytest.mark.parametrize("planner", FAMILIES)
def test_gdpo_beside_every_planner(small, planner):
    trainer = new_trainer(small, **GDPO_RUN | {"planner": planner, "candidate_prompts": 8})
    seen = Seen.of(trainer)
    for step in (1, 2):
        row, rows = trainer.step(step)
        advantages_N = seen.learnt[-1].advantages_N
        assert advantages_N.isfinite().all()
        assert (advantages_N != 0).any()
        assert 0 < row["gradient_norm"] < np.inf
        assert row["budget"] == sum(line["n"] for line in rows)
        assert {f"reward_{name}" for name in ALL} <= {*row}


@pytest.mark.parametrize(
    "objective", [("divergence-ppo",), ("capo",), ("jackpot",), ("rloo", "divergence-ppo", "capo")]
)
def test_losses_and_gates_stand_beside_a_second_look(small, objective):
    plain = new_trainer(small, planner="vip-second-look").step(1)[0]
    row, rows = new_trainer(small, planner="vip-second-look", objective=objective).step(1)
    assert {line["round"] for line in rows} == {0, 1}
    assert row["success"] == plain["success"]
    assert 0 < row["gradient_norm"] < np.inf


# Several parts in one run


def by_hand(record, weights_NT, delta, cap):
    """Loss of divergence-ppo token by token, and the share of tokens whose gate is closed."""
    loss, closed, tokens = 0.0, 0, 0
    log_pi, log_mu = record.log_probs_NT.tolist(), record.rollout_log_probs_NT.tolist()
    for n, t in itertools.product(range(len(log_pi)), range(len(log_pi[0]))):
        if record.mask_NT[n, t]:
            pi, mu, advantage = np.exp(log_pi[n][t]), np.exp(log_mu[n][t]), record.advantages_N[n].item()
            is_closed = abs(pi - mu) > delta and advantage * (pi - mu) > 0
            tokens, closed = tokens + 1, closed + is_closed
            loss -= weights_NT[n, t].item() * advantage * min(pi / mu, cap) * (not is_closed)
    return loss, closed / tokens


def test_vip_gdpo_and_divergence_ppo_by_hand(small):
    """The gate closes tokens, and the denominator stays that of all tokens generated: 1 / (Q n_q) each."""
    trainer = new_trainer(small, **COMBINED)
    seen = Seen.of(trainer)
    for step in (1, 2, 3):
        row, rows = trainer.step(step)
        record, learnt = seen.records[-1], seen.learnt[-1]
        rollouts = learnt.rollouts
        sizes = {q: int((rollouts.group_N == q).sum()) for q in range(8)}
        assert sorted(sizes.values()) == sorted(line["n"] for line in rows)
        weights_NT = torch.zeros(rollouts.mask_NT.shape)
        for n, q in enumerate(rollouts.group_N.tolist()):
            weights_NT[n, : int(rollouts.mask_NT[n].sum())] = 1 / (8 * sizes[q])
        torch.testing.assert_close(learnt.weights_NT, weights_NT)
        expected_N = GDPO(weights={"length": 0.5}).advantages(
            named_rewards(ALL, trainer.lab, rollouts, 4), rollouts.group_N
        )
        torch.testing.assert_close(learnt.advantages_N, expected_N)
        live_N = learnt.advantages_N != 0
        loss, closed = by_hand(record, weights_NT[live_N], delta=0.1, cap=1.1)
        assert row["loss"] == pytest.approx(loss, abs=1e-6)
        assert row["gate_fraction"] == pytest.approx(closed)
        assert 0 < closed < 0.5
        assert row["capped_fraction"] > 0
    assert len(set(sizes.values())) > 1  # VIP has begun to tell prompts apart


def test_factors_of_gates_multiply(small):
    changes = {"objective": ("gdpo", "jackpot", "capo"), "actor": "quantised", "actor_settings": {"bits": 3}}
    settings = {"jackpot": {"rate": 0.8}, "capo": {"tau_policy": 1e-6}}
    trainer = new_trainer(small, **GDPO_RUN | changes, objective_settings=settings)
    seen = Seen.of(trainer)
    trainer.step(1)
    row, _ = trainer.step(2)
    record, learnt = seen.records[-1], seen.learnt[-1]
    jackpot, capo = (trainer.learner.objective.gates[name].factors(record).values_NT for name in ("jackpot", "capo"))
    weights_NT = learnt.weights_NT[learnt.advantages_N != 0]
    expected = -(weights_NT * record.advantages_N[:, None] * jackpot * capo).sum().item()
    assert row["loss"] == pytest.approx(expected, abs=1e-6)
    assert 0 < row["jackpot_rejected"] < 1
    assert 0 < row["capo_rejected"] < 1


@pytest.mark.parametrize("stop_after", [1, 3])
@pytest.mark.parametrize("changes", [{}, {"select": "pods", "select_settings": {"keep": 4}}])
def test_a_killed_run_resumes_to_the_same_bytes(tmp_path, small, stop_after, changes):
    settings = config(**COMBINED | changes, updates=2)
    run(tmp_path / "whole", settings, small)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", settings, small, stop_after)
    run(tmp_path / "killed", settings, small)
    assert_same_bytes(
        tmp_path / "whole", tmp_path / "killed", "metrics.jsonl", "rollouts.jsonl", "checkpoint.safetensors"
    )
