"""What several tests of the adapter for verl share: its configuration, a session, estimators, a toy planner."""

from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from hydra import compose, initialize_config_module
from verl.trainer.ppo import core_algos

from allotment.integrations.verl import running
from allotment.integrations.verl.config import planner_of, read, selector_of
from allotment.integrations.verl.session import Session
from allotment.planning import Planner
from allotment.planning.contract import Contract

PROMPTS, MEAN = 16, 8
OVERRIDES = ["data.train_batch_size=16", "actor_rollout_ref.rollout.n=8", "algorithm.adv_estimator=allotment_rloo"]
OVERRIDES += ["actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum"]  # what baselines need
KEYS = [f"d/{q}" for q in range(PROMPTS)]


def config_of(*overrides: str):
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", [*OVERRIDES, *overrides])


def session_of(folder: Path, *overrides: str) -> Session:
    """As the manager starts it, without Ray."""
    config = config_of(*overrides)
    settings, batch = read(config)
    planner = planner_of(config, settings, batch)
    return Session(planner, settings, batch, folder, selector=selector_of(config, settings, batch, planner))


def names(step: int, count: int = PROMPTS) -> list[str]:
    return [f"{step:08x}-{row}" for row in range(count)]


def advantages_of(session: Session, uids, rewards, monkeypatch, estimator: str = "rloo") -> np.ndarray:
    """[N] what verl gets of an ``allotment_`` estimator for a batch in this order, padding at the end."""
    monkeypatch.setattr(running, "_current", session)
    index = np.array([*uids, "pad1"], dtype=object)
    rewards_NT = torch.zeros(len(index), 3, dtype=torch.float64)
    rewards_NT[:-1, 1] = torch.as_tensor(np.asarray(rewards, dtype=np.float64))
    mask = torch.ones(len(index), 3)
    mask[-1] = 0
    advantages, returns = core_algos.get_adv_estimator_fn(f"allotment_{estimator}")(
        token_level_rewards=rewards_NT, response_mask=mask, index=index, config=None
    )
    assert torch.equal(advantages, returns)
    assert not advantages[-1].any()
    assert (advantages[:-1] == advantages[:-1, :1]).all()
    return advantages[:-1, 0].double().numpy()


class Toy(Planner):
    """The first prompt of a batch gets nothing, the second one rollout; weights and baselines from prompt and step."""

    _parts: ClassVar = {}

    @property
    def contract(self) -> Contract:
        return Contract(
            leaves_out=self.leaves_out, weights=self.weights, baselines=self.baselines, told=frozenset(self.told)
        )

    def __init__(self, *, leaves_out=True, weights=True, baselines=True, told=(), **common) -> None:
        self.leaves_out, self.weights, self.baselines, self.told = leaves_out, weights, baselines, told
        super().__init__(**common)
        self.bounds = (1, 128)

    def _open(self, ids, budget):
        counts = np.full(len(ids), budget // len(ids))
        if self.leaves_out and len(ids) > 2:
            counts[:2] = 0, 1
            counts[2:] = (budget - 1) // (len(ids) - 2)
        counts[-1] += budget - counts.sum()
        place = np.arange(len(ids)) + self._step
        more = {"weights": 1 + place / 4} if self.weights else {}
        if self.baselines:
            more |= {"baselines": place / 10, "baseline_shares": place % 3 / 2}
        return self._new_plan(ids, counts, **more)

    def _observe(self, outcome) -> None: ...
