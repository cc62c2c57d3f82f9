"""The data set of a planner in the Tinker cookbook's own rollout loop, with a policy that needs no service.

Skipped without the cookbook, which is part of no extra: pip install tinker-cookbook==0.6.1
"""

import asyncio
import pickle
from dataclasses import dataclass, replace

import numpy as np
import pytest

pytest.importorskip("tinker_cookbook")

import tinker
from tinker_cookbook.completers import TokensWithLogprobs
from tinker_cookbook.rl.data_processing import compute_advantages
from tinker_cookbook.rl.problem_env import ProblemGroupBuilder
from tinker_cookbook.rl.rollouts import do_group_rollout
from tinker_cookbook.rl.types import Env, EnvGroupBuilder, RLDataset, StepResult

from allotment.errors import ConfigError
from allotment.integrations.tinker import AllotmentDataset
from allotment.planning import VIP, Uniform, make_planner
from allotment.planning.contract import Contract

random = np.random.default_rng(0)


class Coin(Env):
    def __init__(self, p: float) -> None:
        self.p = p

    async def initial_observation(self):
        return tinker.ModelInput.from_ints([1]), []

    async def step(self, action, *, extra=None):
        return StepResult(float(random.random() < self.p), True, tinker.ModelInput.empty(), [])


@dataclass(frozen=True)
class Thunk:
    p: float

    def __call__(self) -> Coin:
        return Coin(self.p)


class Coins(RLDataset):
    """Two batches of eight coins."""

    def get_batch(self, index):
        return [ProblemGroupBuilder(Thunk(p), num_envs=8) for p in (0.0, 1.0, 0.5, 0.5, 0.0, 1.0, 0.5, 0.9)]

    def __len__(self) -> int:
        return 2


class Policy:
    async def __call__(self, model_input, stop):
        return TokensWithLogprobs(tokens=[5], maybe_logprobs=[-1.0])


def groups(builders):
    async def all_of_them():
        return [await do_group_rollout(builder, Policy()) for builder in builders]

    return asyncio.run(all_of_them())


def test_groups_are_as_large_as_planned_and_the_planner_is_told() -> None:
    planner = VIP(budget=64, bounds=(3, 32))
    data = AllotmentDataset(Coins(), planner)
    for step in range(8):
        came = groups(data.get_batch(step % len(data)))
        sizes = [len(group.trajectories_G) for group in came]
        assert sum(sizes) == 64
        assert not planner.open_plans
        for group, advantages in zip(came, compute_advantages(came), strict=True):
            wins = np.array([t.transitions[0].reward for t in group.trajectories_G])
            by_hand = (wins - wins.mean()) * 8 / len(wins)
            np.testing.assert_allclose(advantages.numpy(), by_hand, atol=1e-6)
    assert min(sizes[2], sizes[3], sizes[6]) > max(sizes[0], sizes[1], sizes[4], sizes[5])


def test_groups_that_never_come_close_a_batch_late() -> None:
    planner = VIP(budget=64, bounds=(3, 32))
    data = AllotmentDataset(Coins(), planner, patience=2, weighting="rollout")
    late = data.get_batch(0)
    groups(late[:5])
    data.get_batch(1)
    assert len(planner.open_plans) == 2
    data.get_batch(0)
    assert len(planner.open_plans) == 2
    assert planner.missing_rollouts == sum(builder.builder.num_envs for builder in late[5:])
    groups(late[5:])  # too late: ignored


class Weigher(Uniform):
    """Equal counts, the weight of a prompt its place in the batch."""

    @property
    def contract(self):
        return Contract(weights=True)

    def _open(self, ids, budget):
        return replace(super()._open(ids, budget), weights=np.arange(len(ids), dtype=float))


@pytest.mark.parametrize("weighting", ["prompt", "rollout"])
def test_weights_of_prompts_scale_rewards(weighting) -> None:
    came = groups(AllotmentDataset(Coins(), Weigher(budget=64), weighting=weighting).get_batch(0))
    for place, (group, advantages) in enumerate(zip(came, compute_advantages(came), strict=True)):
        wins = np.array([t.transitions[0].reward for t in group.trajectories_G])
        np.testing.assert_allclose(advantages.numpy(), place * (wins - wins.mean()), atol=1e-5)


@pytest.mark.parametrize(
    ("planner", "reason"),
    [
        (VIP(budget=64, rounds=2), "rounds"),
        (make_planner("reinforce-ada-est", budget=64), "selection"),
        (make_planner("vip-tokens", budget=2048), "lengths"),
        (type("Believer", (Weigher,), {"contract": Contract(baselines=True)})(budget=64), "baselines"),
    ],
)
def test_what_the_cookbook_cannot_carry_out_is_refused_by_name(planner, reason) -> None:
    with pytest.raises(ConfigError, match=rf"(?s)tinker.*{planner.name}.*{reason}.*uniform"):
        AllotmentDataset(Coins(), planner)


def test_a_pickled_builder_is_the_plain_one() -> None:
    told = AllotmentDataset(Coins(), VIP(budget=64)).get_batch(0)[0]
    assert pickle.loads(pickle.dumps(told)) == told.builder


def test_a_builder_whose_size_is_fixed_is_refused() -> None:
    class Fixed(EnvGroupBuilder):
        async def make_envs(self):
            return []

    class Others(Coins):
        def get_batch(self, index):
            return [Fixed() for _ in range(8)]

    with pytest.raises(ConfigError, match="a field num_envs"):
        AllotmentDataset(Others(), VIP(budget=64)).get_batch(0)
