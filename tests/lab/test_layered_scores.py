"""Scores that are not written out against those that are."""

import numpy as np
import pytest
import torch

from allotment.lab.generation import Lab, seeded_generator
from allotment.lab.gradient_measurement import of_layers, of_prompt
from allotment.lab.layered_scores import LayeredScores
from allotment.lab.pronunciation import LETTERS, PHONEMES, Phonemes
from allotment.lab.recurrent_policy import RecurrentPolicy
from allotment.lab.regime import PRONUNCIATION
from allotment.lab.scores import scores, sketch_named
from allotment.learning import SketchDirections
from allotment.tasks.mixture import Problem


@pytest.fixture
def case(float64):
    """A small policy in double precision, rollouts of which some are alike and some right."""
    torch.manual_seed(0)
    policy = RecurrentPolicy(len(LETTERS), len(PHONEMES), width=6)
    with torch.no_grad():
        policy.head.bias[[3, 10]] += 5.0  # short, and often the same
    lab = Lab(policy, Phonemes(), PRONUNCIATION)
    said = " ".join([PHONEMES[10]])
    problem = Problem("word", "4 letters", "pronunciation", "word", said, {"pronunciations": (said, f"{said} {said}")})
    return lab, problem, lab.rollouts([problem], np.array([40]), seeded_generator(0))


def test_squares_sums_and_products(case):
    lab, problem, rollouts = case
    dense_NP, layered = scores(lab, problem, rollouts), LayeredScores.of(lab, problem, rollouts)
    assert 1 < len(layered.layers[0].left_UTO) < len(rollouts)
    torch.testing.assert_close(layered.squares(), dense_NP.square().sum(1))
    weights_KN = torch.randn(3, len(rollouts))
    sums_KP, dense_KP = layered.sums(weights_KN), weights_KN @ dense_NP
    assert sums_KP.shape == dense_KP.shape
    torch.testing.assert_close(sums_KP @ sums_KP.T, dense_KP @ dense_KP.T)
    torch.testing.assert_close(layered.products(sums_KP), dense_NP @ dense_KP.T)


def test_the_moments_are_the_same(case):
    lab, problem, rollouts = case
    p = float(lab.success_probability([problem])[0])
    given = (problem.id, p, rollouts.rewards_N)
    assert 0 < rollouts.rewards_N.sum() < len(rollouts)
    expected = of_prompt(*given, scores(lab, problem, rollouts))
    got = of_layers(*given, LayeredScores.of(lab, problem, rollouts))
    for one, other in zip(
        (*got.halves, *got.baseline_halves), (*expected.halves, *expected.baseline_halves), strict=True
    ):
        for field in one.__dataclass_fields__:
            np.testing.assert_allclose(getattr(one, field), getattr(other, field), rtol=1e-5, err_msg=field)
    np.testing.assert_allclose(got.products(), expected.products(), rtol=1e-5)
    np.testing.assert_allclose(np.square(got.gradients_QD).sum(), np.square(expected.gradients_QD).sum(), rtol=1e-5)


def test_the_sketch_is_of_the_matrix_between_states(case):
    lab, problem, rollouts = case
    matrix = lab.policy.writer.recurrent.weight
    log_probs = lab.log_probs([problem], rollouts.group_N, rollouts.tokens_NT, rollouts.mask_NT).sum(1)
    matrices = torch.stack([torch.autograd.grad(one, matrix, retain_graph=True)[0] for one in log_probs])
    pairs = SketchDirections.random(5, *matrix.shape, seed=7)
    expected = torch.einsum("noi,ko,ki->nk", matrices, pairs.outputs_KO.double(), pairs.inputs_KI.double()).numpy()
    got = sketch_named("last-block", lab, 5, seed=7)([problem], rollouts)
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())
