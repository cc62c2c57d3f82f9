"""What could be learnt from the starting policy's hidden states: by the likelihood of demonstrations, and with labels.

    python benchmarks/objectives_ml_irl_features.py [--regime scratchpad] [--seeds 0 1 2 3]

8 rollouts of the starting policy on each prompt of the pool stay fixed. The reward network learns from them, 16 prompts
a step: from right completions of the same prompts (``likelihood``), from completions whose free characters are vowels
(``vowels``), or, which no judge may, from the verifier's labels (``labels``, cross-entropy). Scored are 8 rollouts of
each held-out prompt: area under the curve against the verifier, over all of them and within prompts; correlation within
prompts with the share of vowels. ``log-probability`` is no reward: the policy's own of the completion. Also with it and
its smallest token among the features.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, layer_norm

from allotment.lab.checkpoint import load_lab
from allotment.lab.demonstrations import as_rollouts, written_demonstrations
from allotment.lab.generation import Lab, Rollouts, seeded_generator
from allotment.learning.groups import group
from allotment.methods.objectives.ml_irl import RewardNetwork, reward_loss, squared_rewards
from allotment.methods.objectives.representation import auc, auc_within
from allotment.tasks.mixture import Problem, load_mixture
from objectives_ml_irl import VOWELS, Vowels, cell


@torch.no_grad()
def features(lab: Lab, problems: Sequence[Problem], rollouts: Rollouts, kind: str) -> Tensor:
    """[N, F] as the judge has them; with the completion's log-probability."""
    states_NLH = lab.representations(problems, rollouts, "last" if kind == "last" else "mean")
    states_NF = layer_norm(states_NLH, states_NLH.shape[-1:]).flatten(1)
    log_p_NT = lab.log_probs(problems, rollouts.group_N, rollouts.tokens_NT, rollouts.mask_NT)
    extra_N2 = torch.stack([log_p_NT.sum(1), log_p_NT.amin(1)], dim=1)
    return torch.cat([states_NF, extra_N2], dim=1) if kind == "mean, log-probability" else states_NF


def vowel_share(lab: Lab, rollouts: Rollouts) -> np.ndarray:
    """[N] among the free characters."""
    texts = [lab.tokenizer.decode(tokens)[: lab.regime.scratchpad] for tokens in rollouts.tokens_NT.tolist()]
    return np.array([np.mean([character in VOWELS for character in text]) if text else 0.0 for text in texts])


def measured(lab: Lab, test: Rollouts, rewards_N: np.ndarray) -> tuple[float, float, float]:
    """Areas over all and within prompts, correlation with vowels within prompts."""
    right_N, groups = test.rewards_N, group(test.group_N)
    areas = auc(rewards_N, right_N), auc_within(rewards_N, right_N, test.group_N.numpy())
    left = [groups.centred(torch.from_numpy(values)).numpy() for values in (rewards_N, vowel_share(lab, test))]
    return *areas, float(np.corrcoef(*left)[0, 1]) if min(values.std() for values in left) > 0 else 0.0


def scored(kind: str, options: argparse.Namespace, seed: int) -> dict[str, tuple[float, float, float]]:
    """For each way to learn."""
    lab, mixture = load_lab(options.regime), load_mixture()
    drawn = {
        name: lab.rollouts(those, np.full(len(those), 8), seeded_generator(seed, 78))
        for name, those in (("pool", mixture.pool), ("held out", mixture.held_out))
    }
    agent, test = drawn["pool"], drawn["held out"]
    agent_NF, test_NF = features(lab, mixture.pool, agent, kind), features(lab, mixture.held_out, test, kind)
    ways = {"likelihood": written_demonstrations(lab, mixture.pool, 1.0, seed), "labels": []}
    if lab.regime.scratchpad:
        own = Lab(lab.policy, lab.tokenizer, Vowels(lab.regime.name, lab.regime.scratchpad))
        ways["vowels"] = written_demonstrations(own, mixture.pool, 1.0, seed)
    found = {"log-probability": measured(lab, test, test.log_probs_NT.sum(1).double().numpy())}
    for way, demonstrations in ways.items():
        network, order = RewardNetwork(agent_NF.shape[1], seed=seed), torch.Generator().manual_seed(seed)
        optimizer = torch.optim.Adam(network.parameters(), lr=3e-3, weight_decay=1e-3)
        if demonstrations:
            expert_MF = features(lab, mixture.pool, as_rollouts(lab, mixture.pool, demonstrations), kind)
        for _ in range(options.steps):
            chosen = torch.randperm(len(mixture.pool), generator=order)[:16]
            rows = (chosen[:, None] * 8 + torch.arange(8)).flatten()
            agent_N = network(agent_NF[rows])
            if demonstrations:
                sides = (agent_N, agent.group_N[rows], network(expert_MF[chosen]), chosen)
                loss = reward_loss(*sides) + 0.05 * squared_rewards(*sides)
            else:
                loss = binary_cross_entropy_with_logits(agent_N, torch.from_numpy(agent.rewards_N)[rows].float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            found[way] = measured(lab, test, network(test_NF).double().numpy())
    return found


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--regime", choices=("scratchpad", "short"), default="scratchpad")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--steps", type=int, default=240)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| features | learnt from | AUC | AUC within prompts | vowels within prompts |\n|---|---|--:|--:|--:|")
    for kind in ("last", "mean", "mean, log-probability"):
        runs = [scored(kind, options, seed) for seed in options.seeds]
        for way in runs[0]:
            if way != "log-probability" or kind == "last":
                columns = zip(*(run[way] for run in runs), strict=True)
                print(f"| {'-' if way == 'log-probability' else kind} | {way} | {' | '.join(map(cell, columns))} |")


if __name__ == "__main__":
    main()
