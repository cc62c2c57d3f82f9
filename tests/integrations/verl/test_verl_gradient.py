"""The gradient that verl's optimizer sees, against a recomputation from the plan: weights, baselines, groups of one."""

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from verl.protocol import DataProto
from verl.trainer.ppo import core_algos
from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories
from verl.utils.config import omega_conf_to_dataclass
from verl_cases import config_of, names, session_of

from allotment.integrations.verl import running
from allotment.integrations.verl.passes import FixedPasses

MICRO = "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1"
LENGTH = 5


class Group:
    """verl's worker group of one rank: the gradient of its loss with respect to the log-probability of each token."""

    def __init__(self, config, advantages_NT, mask_NT) -> None:
        self.actor, self.advantages, self.mask = config.actor_rollout_ref.actor, advantages_NT, mask_NT
        self.gradient = torch.zeros(advantages_NT.shape, dtype=torch.float64)
        self.passes = 0

    def update_actor(self, batch):
        size, actor = batch.extra_info["mini_batch_size"], omega_conf_to_dataclass(self.actor)
        for first in range(0, len(batch), size):
            rows = slice(first, first + size)
            log_p = torch.zeros(size, LENGTH, requires_grad=True)
            mask = self.mask[rows]
            actor.global_batch_info.update(
                dp_size=1, batch_num_tokens=mask.sum(), global_batch_size=batch.extra_info["global_batch_size"]
            )
            loss, _ = core_algos.compute_policy_loss_vanilla(
                torch.zeros(size, LENGTH), log_p, self.advantages[rows], mask, actor.loss_agg_mode, actor
            )
            loss.backward()
            self.gradient[rows] += log_p.grad.double()
            self.passes += 1


class Batch:
    def __init__(self, keys, padding: int) -> None:
        self.keys = [*keys, *(f"padff_{i}_0" for i in range(padding))]
        self.tags = [{"is_padding": key.startswith("pad")} for key in self.keys]
        self.extra_info: dict = {}

    def __len__(self) -> int:
        return len(self.keys)


def advantages(config, session, batch, rewards, mask_NT, monkeypatch):
    """[N, T] by verl's own way to the estimator, and through its padded batches."""
    monkeypatch.setattr(running, "_current", session)
    scores = torch.zeros(len(batch), LENGTH)
    scores[: len(rewards), 0] = torch.as_tensor(rewards, dtype=torch.float32)
    data = DataProto(
        batch=TensorDict({"token_level_rewards": scores, "response_mask": mask_NT}, batch_size=len(batch)),
        non_tensor_batch={"uid": np.array([key.rsplit("_", 2)[0] for key in batch.keys], dtype=object)},
    )
    estimator = config.algorithm.adv_estimator
    done = compute_advantage_for_multi_trajectories(data, batch.keys, estimator, config=config.algorithm)
    return done.batch["advantages"]


def by_hand(plan, keys, rewards, lengths) -> np.ndarray:
    """[N, T] minus the gradient of the mean over all candidates of w times the mean advantage of their rollouts."""
    uids = [key.rsplit("_", 2)[0] for key in keys]
    row = {prompt: q for q, prompt in enumerate(plan.prompt_ids)}
    gradient = np.zeros((len(keys), LENGTH))
    for i, uid in enumerate(uids):
        q, group = row[f"d/{int(uid.rsplit('-', 1)[1])}"], [j for j, other in enumerate(uids) if other == uid]
        others = [rewards[j] for j in group if j != i]
        share = 1.0 if not others or plan.baseline_shares is None else plan.baseline_shares[q]
        baseline = share * plan.baselines[q] + (0.0 if not others else (1 - share) * float(np.mean(others)))
        weight = 1.0 if plan.weights is None else plan.weights[q]
        candidates = plan.candidates or len(plan.prompt_ids)
        gradient[i, : lengths[i]] = weight * (rewards[i] - baseline) / (candidates * len(group))
    return gradient


@pytest.mark.parametrize(("planner", "prompts", "n"), [("joint", 16, 8), ("joint", 64, 1), ("verl_cases:Toy", 16, 8)])
@pytest.mark.parametrize("estimator", ["allotment_rloo", "allotment_dr_grpo"])
def test_the_whole_design_reaches_the_optimizer(planner, prompts, n, estimator, tmp_path, monkeypatch) -> None:
    """Prompts chosen from a larger draw, weights, beliefs mixed with the other rollouts, groups of one; two passes."""
    own = [f"data.train_batch_size={prompts}", f"actor_rollout_ref.rollout.n={n}", f"+allotment.planner='{planner}'"]
    own += [f"algorithm.adv_estimator={estimator}", MICRO, "actor_rollout_ref.rollout.name=vllm"]
    config, session, plans = config_of(*own), session_of(tmp_path, *own), []
    ask = session.planner.ask
    monkeypatch.setattr(session.planner, "ask", lambda *a, **k: plans.append(ask(*a, **k)) or plans[-1])
    random, sizes = np.random.default_rng(0), set()
    for step in range(1, 5):
        uids = names(step, prompts)
        counts = session.plan(uids, [f"d/{q}" for q in range(prompts)], step)
        assert sum(counts) == prompts * n
        sizes |= set(counts)
        keys = [f"{uid}_{i}_0" for uid, count in zip(uids, counts, strict=True) for i in range(count)]
        keys = [keys[i] for i in random.permutation(len(keys))]
        p_N = np.array([int(key.rsplit("_", 2)[0].rsplit("-", 1)[1]) % 5 / 4 for key in keys])
        rewards, lengths = (random.random(len(keys)) < p_N).astype(float), random.integers(1, LENGTH + 1, len(keys))
        batch = Batch(keys, padding=2 + len(keys) % 2)
        mask_NT = torch.zeros(len(batch), LENGTH)
        mask_NT[: len(keys)] = torch.as_tensor(np.arange(LENGTH) < lengths[:, None]).float()
        advantages_NT = advantages(config, session, batch, rewards, mask_NT, monkeypatch)
        group = Group(config, advantages_NT, mask_NT)
        FixedPasses(group, 2).update_actor(batch)
        assert group.passes == 2
        found = -group.gradient.numpy()[: len(keys)] / group.passes
        np.testing.assert_allclose(found, by_hand(plans[-1], keys, rewards, lengths), rtol=1e-6, atol=1e-9)
        assert not group.gradient.numpy()[len(keys) :].any()
    if (planner, n) != ("joint", 8):  # a rollout a candidate makes it choose; with eight it takes all
        assert {0, 1} < sizes
        assert len(np.unique(np.round(plans[-1].weights, 6))) > 3
