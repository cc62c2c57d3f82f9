"""Gradients, directional derivatives and sketches of scores against autograd, rollout by rollout."""

import numpy as np
import pytest
import torch

from allotment.lab.generation import seeded_generator
from allotment.lab.past import past_steps
from allotment.lab.scores import directional_scores, random_directions, scores, sketch_named
from allotment.learning import SketchDirections


def autograd_scores(lab, problems, rollouts):
    """One dict of gradients a rollout, by reverse mode on the whole batch."""
    log_probs = lab.log_probs(problems, rollouts.group_N, rollouts.tokens_NT, rollouts.mask_NT).sum(1)
    names, parameters = zip(*lab.policy.named_parameters(), strict=True)
    return [
        dict(zip(names, torch.autograd.grad(log_prob, parameters, retain_graph=True), strict=True))
        for log_prob in log_probs
    ]


@pytest.fixture
def case(mixture, scratchpad):
    """Ragged groups, one of them empty."""
    problems = [mixture.pool[i] for i in (0, 200, 500, 700)]
    rollouts = scratchpad.rollouts(problems, np.array([4, 0, 2, 3]), seeded_generator(1))
    return scratchpad, problems, rollouts, autograd_scores(scratchpad, problems, rollouts)


def test_scores_are_the_gradient_and_its_projections(case):
    lab, problems, rollouts, by_autograd = case
    expected_NP = torch.stack([torch.cat([g.flatten() for g in s.values()]) for s in by_autograd])
    own = rollouts.group_N == 2
    scale = expected_NP.norm(dim=1).max().item()
    torch.testing.assert_close(
        scores(lab, problems[2], rollouts.of_prompt(2)), expected_NP[own], rtol=1e-3, atol=1e-5 * scale
    )
    directions_PD = random_directions(lab, 3, 2)
    projected = directional_scores(lab, problems, rollouts, directions_PD)
    np.testing.assert_allclose(projected, expected_NP @ directions_PD, rtol=1e-3, atol=1e-4 * scale)


def test_the_last_layer_sketch_is_the_output_matrix_part(case):
    lab, problems, rollouts, by_autograd = case
    size = lab.policy.size
    pairs = SketchDirections.random(5, size.vocabulary, size.width, seed=7)
    heads = torch.stack([s["head.weight"] for s in by_autograd])
    expected = torch.einsum("nvh,kv,kh->nk", heads, pairs.outputs_KO, pairs.inputs_KI).numpy()
    sketch = sketch_named("last-layer", lab, 5, seed=7)
    np.testing.assert_allclose(sketch(problems, rollouts), expected, rtol=1e-3, atol=1e-3)


def test_the_last_block_sketch_is_that_matrix_part(case):
    lab, problems, rollouts, by_autograd = case
    name, (outputs, inputs) = "blocks.1.out.weight", lab.policy.blocks[1].out.weight.shape
    pairs = SketchDirections.random(5, outputs, inputs, seed=7)
    matrices = torch.stack([s[name] for s in by_autograd])
    expected = torch.einsum("noi,ko,ki->nk", matrices, pairs.outputs_KO, pairs.inputs_KI).numpy()
    sketch = sketch_named("last-block", lab, 5, seed=7)
    np.testing.assert_allclose(sketch(problems, rollouts), expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_sketches_are_a_function_of_the_seed_and_not_of_the_judged_directions(case):
    lab, problems, rollouts, _ = case
    one, same, other = (sketch_named("exact", lab, 2, seed)(problems, rollouts) for seed in (4, 4, 5))
    np.testing.assert_array_equal(one, same)
    assert not np.isclose(one, other).any()
    judged = directional_scores(lab, problems, rollouts, random_directions(lab, 2, 4, 2))
    assert not np.isclose(one, judged).any()


def test_the_past_is_the_same_with_and_without_sketches(mixture, short):
    pool = mixture.pool[:20]
    sketch = sketch_named("last-layer", short, 3, seed=0)
    plain, sketched = list(past_steps(short, pool, 11, 5)), list(past_steps(short, pool, 11, 5, sketch))
    assert [len(s.ids) for s in plain] == [16, 4, 16, 4]
    assert [len(s.rollouts) for s in plain] == [128, 32, 48, 12]
    for one, other in zip(plain, sketched, strict=True):
        assert one.ids == other.ids
        torch.testing.assert_close(one.rollouts.tokens_NT, other.rollouts.tokens_NT)
        assert one.scores_NK is None
        assert other.scores_NK.shape == (len(other.rollouts), 3)
