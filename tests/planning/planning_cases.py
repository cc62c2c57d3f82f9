"""What the tests of the planners share: one of each kind, rewards for a plan, exact comparison of states."""

import copy
from types import SimpleNamespace

import numpy as np

from allotment import VIP, Uniform
from allotment.planning import InverseAccuracy, InverseVariance, RewardVarianceVIP, RidgeVIP
from allotment.types import Posterior

IDS = [7, "7", "täsk/3", 0, -5, "x", 10**20, "y z", "", 12, "x\n", "\ud800"]
EMBEDDINGS = np.random.default_rng(0).normal(size=(len(IDS), 4))
EMBEDDINGS[1] = EMBEDDINGS[0]  # two prompts that no embedding can tell apart: ties
EMBEDDED = {"embeddings": EMBEDDINGS, "ids": IDS}
DEFAULTS = {"budget": 75, "bounds": (3, 10)}

COUNTING = {"VIP": VIP, "Uniform": Uniform, "InverseAccuracy": InverseAccuracy, "InverseVariance": InverseVariance}
EMBEDDING = {"VIP.paper": VIP.paper, "RidgeVIP": RidgeVIP, "RewardVarianceVIP": RewardVarianceVIP}
NAMES = [*COUNTING, *EMBEDDING]
SUCCESS_NAMES = [name for name in NAMES if name != "RewardVarianceVIP"]


def make(name, **settings):
    if name in COUNTING:
        return COUNTING[name](**{**DEFAULTS, **settings})
    return EMBEDDING[name](**{**DEFAULTS, **EMBEDDED, **settings})


def rewards_for(plan, rng, probability=0.4):
    """Random 0/1 rewards and the group ids of every rollout of ``plan``, groups one after another."""
    p_N = np.repeat(np.broadcast_to(probability, len(plan.counts)), plan.counts)
    return (rng.random(plan.budget) < p_N).astype(float), plan.group_ids()


def with_history(planner, seed=0, steps=3):
    """The planner after some steps on random batches, with rewards that did not all come back."""
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        batch = [IDS[i] for i in rng.permutation(len(IDS))[: rng.integers(4, len(IDS) + 1)]]
        plan = planner.ask(batch, budget=6 * len(batch))
        rewards, groups = rewards_for(plan, rng, rng.random(len(batch)))
        keep = [0, *range(2, plan.budget)]
        planner.tell(plan, rewards[keep], [groups[i] for i in keep])
    return planner


class Known:
    """A predictor that is told the truth once and for all; it keeps what it observes for the tests to look at."""

    def __init__(self, mean, variance=None):
        self.mean = dict(mean)
        self.variance = dict.fromkeys(self.mean, 0.0) if variance is None else dict(variance)
        self.observed = []

    def predict(self, ids):
        return Posterior(np.array([self.mean[i] for i in ids]), np.array([self.variance[i] for i in ids]))

    def observe(self, ids, successes, trials):
        self.observed.append((list(ids), np.asarray(successes).tolist(), np.asarray(trials).tolist()))

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def snapshot(planner):
    """The whole state, sharing nothing with the planner; and what else a user can see of it."""
    return copy.deepcopy(planner.state_dict()) | {"seen": [planner.missing_rollouts, len(planner.open_plans)]}


def assert_same(one, other, where="state"):
    """Equal to the last bit, type for type; arrays of equal dtype."""
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, np.ndarray):
        assert (one.dtype, one.shape) == (other.dtype, other.shape), where
        assert one.tobytes() == other.tobytes(), where
    elif isinstance(one, float):
        assert one.hex() == other.hex(), where
    else:
        assert one == other, where


def assert_same_plan(one, other):
    assert (one.prompt_ids, one.step, one.round) == (other.prompt_ids, other.step, other.round)
    parts = [
        SimpleNamespace(
            counts=plan.counts,
            multiplier=np.array(plan.allocation.multiplier),
            objective=np.array([plan.allocation.objective, plan.allocation.uniform_objective]),
            posterior=vars(plan.posterior) if plan.posterior else None,
        )
        for plan in (one, other)
    ]
    assert_same(vars(parts[0]), vars(parts[1]), "plan")
