from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import pad

from allotment.lab.generation import seeded_generator


@pytest.fixture(scope="module")
def drawn(mixture, shipped_labs):
    """Prompts of several lengths and rollouts of both policies."""
    problems = list(mixture.pool[::40])
    return problems, {
        name: lab.rollouts(problems, np.full(len(problems), 3), seeded_generator(0))
        for name, lab in shipped_labs.items()
    }


def by_hand(lab, problem, tokens):
    """[T, layers, H]: outputs of the blocks when prompt and completion are run as one unpadded row."""
    seen = []
    hooks = [b.register_forward_hook(lambda _, given, made: seen.append(made[0][0])) for b in lab.policy.blocks]
    cache = lab.policy.encode_prompts([lab.tokenizer.encode_prompt(problem.question)])
    lab.policy.hidden(cache, torch.tensor([[lab.tokenizer.answer, *tokens]]))
    for hook in hooks:
        hook.remove()
    layers = len(lab.policy.blocks)
    return torch.stack([torch.cat([seen[i], seen[layers + i]]) for i in range(layers)], dim=1).detach()


@pytest.mark.parametrize("regime", ["scratchpad", "short"])
def test_representations_are_the_blocks_outputs_of_the_unpadded_row(shipped_labs, drawn, regime):
    lab, problems, rollouts = shipped_labs[regime], drawn[0], drawn[1][regime]
    last_NLH, mean_NLH = (lab.representations(problems, rollouts, pooling) for pooling in ("last", "mean"))
    assert len(set(rollouts.mask_NT.sum(1).tolist())) > 2
    for row in range(len(rollouts)):
        tokens = rollouts.tokens_NT[row][rollouts.mask_NT[row]].tolist()
        states_TLH = by_hand(lab, problems[rollouts.group_N[row]], tokens)
        torch.testing.assert_close(last_NLH[row], states_TLH[-1], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(mean_NLH[row], states_TLH.mean(0), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_what_stands_in_padding_does_not_matter(shipped_labs, drawn, pooling):
    lab, problems, rollouts = shipped_labs["short"], drawn[0], drawn[1]["short"]
    garbage = torch.where(rollouts.mask_NT, rollouts.tokens_NT, 5)
    longer = replace(rollouts, tokens_NT=pad(garbage, (0, 3), value=7), mask_NT=pad(rollouts.mask_NT, (0, 3)))
    one, other = (lab.representations(problems, each, pooling) for each in (rollouts, longer))
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    alone = lab.representations([problems[0]], rollouts.of_prompt(0), pooling)
    torch.testing.assert_close(alone, one[rollouts.group_N == 0], atol=1e-4, rtol=1e-4)
