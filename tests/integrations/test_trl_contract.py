"""Every registered planner, selector and objective with TRL: carried out, seen in the update, or refused by name."""

import numpy as np
import pytest
import torch
from trl_cases import OURS, make

from allotment.errors import ConfigError
from allotment.integrations.capabilities import GENERIC, TRL, TRL_DPO, VERL
from allotment.integrations.trl import AllotmentGRPOConfig, AllotmentGRPOTrainer
from allotment.learning import baseline_advantages, dr_grpo_advantages, rollout_weights, selected_advantages_and_weights
from allotment.planning import Contract, Planner, Uniform
from allotment.planning.contract import check_planner, check_planner_name, entry_obstacle, works_with
from allotment.planning.making import parameters
from allotment.registry import OBJECTIVES, PLANNERS, SELECTORS
from allotment.selection import Scored, Selection, SelectorNeeds, Stateless
from allotment.trainers.trl.config import TRLTrainConfig
from allotment.trainers.trl.run import KINDS

TRAINERS = {"TRL": TRL, "TRL's DPO": TRL_DPO, "verl": VERL, "generic": GENERIC}
BUDGET, MEAN = 16, 4


@pytest.mark.parametrize("trainer", TRAINERS.values(), ids=TRAINERS)
@pytest.mark.parametrize("name", PLANNERS.names)
def test_a_planner_is_carried_out_or_refused_by_name(name, trainer):
    reason = entry_obstacle(PLANNERS[name], trainer)
    if reason is None:
        assert check_planner_name(name, trainer) == name
        assert name in works_with(trainer)
        return
    with pytest.raises(ConfigError) as caught:
        check_planner_name(name, trainer)
    text = str(caught.value)
    assert f"{trainer.name} cannot carry out the planner '{name}': {reason}" in text
    assert all(other in text for other in works_with(trainer))
    assert "vip" in works_with(trainer)


def vectors(folder):
    np.save(folder / "e.npy", np.random.default_rng(0).normal(size=(12, 4)))
    return str(folder / "e.npy")


class Watched(AllotmentGRPOTrainer):
    """Keeps what its updates were made of."""

    def _close(self, batch, output):
        super()._close(batch, output)
        self.seen = getattr(self, "seen", [])
        self.seen.append((batch, output["advantages"].clone()))


def watched(folder, steps=2, **settings):
    undivided = {"scale_rewards": "none", "loss_type": "dr_grpo"}
    trainer = make(Watched, AllotmentGRPOConfig, folder, max_steps=steps, **undivided, **settings)
    trainer.train()
    assert len(trainer.seen) == steps
    return trainer


def expected_advantages(trainer, batch):
    """[N] by the lab's arithmetic: a mean over all rows of these is its loss, prompts alike."""
    group_N, n = torch.from_numpy(batch.layout.group_N), len(batch.layout.group_N)
    rewards_N, mask_N1 = batch.rewards_NF[:, 0], torch.ones(n, 1, dtype=torch.bool)
    plain_N = dr_grpo_advantages(rewards_N, group_N)
    row_of = {prompt: q for q, prompt in enumerate(batch.plan.prompt_ids)}
    rows_Q = [row_of[prompt] for prompt in batch.layout.prompt_ids]

    def spread(values_Q):
        return torch.from_numpy(values_Q[rows_Q]).float()[group_N]

    if batch.plan.baselines is not None:
        shares_Q = batch.plan.baseline_shares
        shares_N = torch.ones(n) if shares_Q is None else spread(shares_Q)
        plain_N = baseline_advantages(rewards_N, group_N, spread(batch.plan.baselines), shares_N)
    weights_N1 = rollout_weights(group_N, mask_N1, "prompt_mean", length="sum")
    if trainer._selector is not None:
        scored = Scored(
            step=batch.plan.step + 1,
            progress=trainer.state.global_step / trainer.state.max_steps,
            prompt_ids=batch.layout.prompt_ids,
            rows_N=batch.layout.group_N,
            rewards_N=rewards_N.double().numpy(),
            advantages_N=plain_N.double().numpy(),
            lengths_N=np.array(batch.tokens_N),
            truncated_N=np.zeros(n, dtype=bool),
            entropies_N=np.zeros(n),
            ages_Q=np.zeros(len(rows_Q), dtype=int),
            numbers_N=batch.plan.step * n + np.arange(n),
            clip_fractions_N=np.zeros(n),
        )
        selection = trainer._selector.select(scored)
        given = rewards_N, group_N, mask_N1, selection
        plain_N, weights_N1 = selected_advantages_and_weights(*given, "dr_grpo", "prompt_mean", length="sum")
    factors_Q = batch.plan.loss_factors(len(batch.layout.prompt_ids))
    scale_N = torch.ones(n) if factors_Q is None else spread(factors_Q)
    return plain_N * weights_N1[:, 0] * n * scale_N


def check_updates(trainer):
    for batch, advantages_N in trainer.seen:
        expected_N = expected_advantages(trainer, batch)
        torch.testing.assert_close(advantages_N, expected_N.to(advantages_N), rtol=1e-4, atol=1e-5)
    assert any(advantages_N.abs().sum() > 0 for _, advantages_N in trainer.seen)


@pytest.mark.parametrize("name", PLANNERS.names)
def test_trl_carries_a_planner_out_or_refuses_it_by_name(name, tmp_path):
    """Counts, weights, baselines and selection of every planner, in the advantages of the real trainer."""
    own = {"estimator": PLANNERS[name].estimator or "rloo", "bounds": [2, 16]}
    settings = {"planner": name, "num_generations": MEAN, "planner_kwargs": own}
    if "embeddings" in PLANNERS[name].needs:
        settings["prompt_embeddings"] = vectors(tmp_path)
    if entry_obstacle(PLANNERS[name], TRL) is not None:
        with pytest.raises(ConfigError, match=f"TRL cannot carry out the planner '{name}'"):
            make(Watched, AllotmentGRPOConfig, tmp_path, **settings)
        return
    trainer = watched(tmp_path, **settings)
    assert trainer.planner.name == name
    assert trainer.planner.contract == PLANNERS[name].contract
    for batch, _ in trainer.seen:
        np.testing.assert_array_equal(np.bincount(batch.layout.group_N), batch.plan.counts[batch.plan.counts > 0])
    check_updates(trainer)


@pytest.mark.parametrize("name", SELECTORS.names)
def test_trl_carries_a_selector_out_or_refuses_it_by_name(name, tmp_path):
    keeps = {"keep": 6} if "keep" in parameters(SELECTORS[name].make) else {}
    settings = {"planner": "uniform", "select": name, "select_kwargs": keeps, "num_generations": 8}
    needs = SELECTORS[name].needs
    if needs.looks_back or not needs.columns <= TRL.columns:
        with pytest.raises(ConfigError, match=f"TRL cannot carry out the selector '{name}'"):
            make(Watched, AllotmentGRPOConfig, tmp_path, **settings)
        return
    trainer = watched(tmp_path, **settings)
    check_updates(trainer)
    assert any((advantages_N == 0).any() for _, advantages_N in trainer.seen)


@pytest.mark.parametrize("name", OBJECTIVES.names)
def test_trl_has_an_objective_or_refuses_it_by_name(name):
    values = {"model": "m", "dataset": "d.jsonl", "objective": (name,)}
    if name in TRL.objectives:
        config = TRLTrainConfig.from_values(values, "the test")
        assert KINDS[config.objective[0]]
        return
    with pytest.raises(ConfigError, match=f"TRL cannot carry out the objective '{name}'") as caught:
        TRLTrainConfig.from_values(values, "the test")
    assert all(other in str(caught.value) for other in TRL.objectives)


class Toy(Planner):
    """Drops every other candidate, weighs the others, gives one of them a group of one, and knows the mean reward."""

    @property
    def contract(self):
        return Contract(leaves_out=True, weights=True, baselines=True)

    @property
    def _parts(self):
        return {"nothing": Uniform(budget=8)}

    def _open(self, ids, budget):
        kept = ids[::2]
        counts_Q = np.ones(len(kept), dtype=np.int64)
        counts_Q[-1] = budget - len(kept) + 1
        weights_Q = np.linspace(1.0, 3.0, len(kept))
        return self._new_plan(
            kept, counts_Q, weights=weights_Q, candidates=len(ids), baselines=np.full(len(kept), 0.25)
        )

    def _observe(self, outcome):
        """Nothing."""


def test_trl_carries_out_weights_and_baselines_of_a_plan(tmp_path):
    trainer = watched(tmp_path, planner=Toy(budget=BUDGET, bounds=(2, 16)))
    check_updates(trainer)
    for batch, advantages_N in trainer.seen:
        assert batch.layout.prompt_ids == batch.plan.prompt_ids
        assert len(batch.plan.prompt_ids) == 2
        assert batch.plan.candidates == 4
        lone = float(batch.rewards_NF[0, 0])
        np.testing.assert_allclose(float(advantages_N[0]), (lone - 0.25) * 1.0 * (2 / 4) * (16 / 2), rtol=1e-5)


class Answers(Stateless):
    """A selector that TRL has nothing to show to."""

    NEEDS = SelectorNeeds(frozenset({"answers"}))

    def select(self, scored):
        return Selection(np.ones(len(scored)))


class Voting(Uniform):
    @property
    def contract(self):
        return Contract(selects=Answers.NEEDS)

    @property
    def selector(self):
        return Answers()


def test_an_object_is_refused_by_what_it_declares(tmp_path):
    for trainer in (TRL, VERL, GENERIC, TRL_DPO):
        with pytest.raises(ConfigError, match="cannot carry out the planner 'Voting'"):
            check_planner(Voting(budget=16), trainer)
    with pytest.raises(ConfigError, match="answers"):
        make(*OURS["grpo"], tmp_path, planner=Voting(budget=16))


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "bnpo"])
def test_a_belief_beside_a_divisor_that_depends_on_the_rollout_is_refused(loss_type, tmp_path):
    settings = {"planner": "joint", "num_generations": MEAN, "loss_type": loss_type}
    with pytest.raises(ConfigError, match="loss_type='dr_grpo'"):
        make(Watched, AllotmentGRPOConfig, tmp_path, **settings)
