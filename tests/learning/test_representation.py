import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from allotment.errors import InvalidInputError
from allotment.methods.objectives.pairs import preference_pairs
from allotment.methods.objectives.preference import label_confidence
from allotment.methods.objectives.representation import (
    RepresentationProbe,
    auc,
    auc_within,
    fit_probe,
    margin_losses,
    probe_step,
)

LAYERS, WIDTH = 3, 4
gaps = st.floats(-1, 1)


@pytest.fixture
def probe(float64):
    probe = RepresentationProbe(LAYERS, WIDTH)
    generator = torch.Generator().manual_seed(0)
    for parameter in probe.parameters():
        nn.init.normal_(parameter, generator=generator)
    return probe


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def clusters(pairs, *, distance, seed=0, width=8):
    """Pairs whose chosen states lie ``distance`` further along one direction, beside a large offset per prompt."""
    offset = 3 * normal(pairs, 2, width, seed=seed)
    chosen, rejected = (offset + normal(pairs, 2, width, seed=seed + i) for i in (1, 2))
    chosen[:, 1, 0] += distance
    return chosen, rejected


@torch.no_grad()
def in_order(probe, chosen, rejected):
    return (probe(chosen) > probe(rejected)).double().mean().item()


def held_out(pairs, share=0.1):
    return torch.arange(pairs) < share * pairs


def test_the_score_is_the_vote_of_the_layers(probe):
    states_NLH = normal(5, LAYERS, WIDTH)
    w, b, v = (p.detach().numpy() for p in (probe.weight_LH, probe.bias_L, probe.votes_LL))
    for states_LH, score in zip(states_NLH.numpy(), probe(states_NLH).tolist(), strict=True):
        readings = [sum(w[k, i] * states_LH[k, i] for i in range(WIDTH)) + b[k] for k in range(LAYERS)]
        votes = [1 / (1 + np.exp(-sum(v[k, j] * readings[j] for j in range(LAYERS)))) for k in range(LAYERS)]
        assert score == pytest.approx(sum(g * t for g, t in zip(votes, readings, strict=True)), abs=1e-12)


def test_the_score_of_a_rollout_does_not_depend_on_the_others(probe):
    states_NLH = normal(6, LAYERS, WIDTH)
    torch.testing.assert_close(probe(states_NLH)[2:3], probe(states_NLH[2:3]))
    torch.testing.assert_close(probe(states_NLH.flip(0)), probe(states_NLH).flip(0))


def test_gradients_are_those_of_finite_differences_and_none_goes_into_the_states(probe):
    chosen, rejected = normal(4, LAYERS, WIDTH, seed=1).requires_grad_(), normal(4, LAYERS, WIDTH, seed=2)

    def loss():
        return margin_losses(probe(chosen), probe(rejected)).mean()

    loss().backward()
    assert chosen.grad is None
    step = 1e-6
    for parameter in probe.parameters():
        flat, gradient = parameter.data.view(-1), parameter.grad.view(-1)
        for i in range(len(flat)):
            flat[i] += step
            above = loss().item()
            flat[i] -= 2 * step
            below = loss().item()
            flat[i] += step
            assert gradient[i].item() == pytest.approx((above - below) / (2 * step), abs=1e-8)


def test_the_margin_loss_in_closed_form():
    values = margin_losses(torch.tensor([1.0, 2.0, -50.0, 60.0]), torch.tensor([0.0, 2.0, 50.0, 0.0]))
    torch.testing.assert_close(values, torch.tensor([np.log(2), np.log1p(np.e), 101.0, 0.0]).float())


def test_a_new_probe_is_indifferent():
    assert torch.equal(RepresentationProbe(2, 8)(normal(5, 2, 8)), torch.zeros(5))


def test_a_fitted_probe_orders_new_pairs_and_ignores_what_is_the_prompts():
    """The direction that tells chosen from rejected is found in the layer where it is, though offsets are larger."""
    probe = RepresentationProbe(2, 8)
    fit = fit_probe(probe, *clusters(400, distance=4.0), held_out(400), epochs=20)
    assert fit.accuracy > 0.9
    chosen, rejected = clusters(400, distance=4.0, seed=10)
    assert in_order(probe, chosen, rejected) > 0.9
    weights = probe.weight_LH.detach().abs()
    assert weights[1, 0] == weights.max()
    assert weights[1, 0] > 2 * weights.flatten().sort().values[-2]


def test_where_there_is_nothing_to_find_new_pairs_are_ordered_by_chance():
    probe = RepresentationProbe(2, 8)
    fit_probe(probe, *clusters(300, distance=0.0), held_out(300), epochs=5)
    chosen, rejected = clusters(3000, distance=0.0, seed=10)
    assert abs(in_order(probe, chosen, rejected) - 0.5) < 4 * 0.5 / np.sqrt(3000)


def test_a_fit_is_a_function_of_its_seed():
    pairs = clusters(100, distance=1.0)
    probes = [RepresentationProbe(2, 8) for _ in range(3)]
    for probe, seed in zip(probes, (0, 0, 1), strict=True):
        fit_probe(probe, *pairs, held_out(100), epochs=3, seed=seed)
    assert torch.equal(probes[0].weight_LH, probes[1].weight_LH)
    assert not torch.equal(probes[0].weight_LH, probes[2].weight_LH)


def test_the_epoch_that_is_kept_is_the_best_of_all_on_the_pairs_held_out():
    (chosen, rejected), test = clusters(60, distance=1.0), held_out(60, 0.4)

    def fitted(epochs):
        probe = RepresentationProbe(2, 8)
        fit = fit_probe(probe, chosen, rejected, test, epochs=epochs)
        return fit, in_order(probe, chosen[test], rejected[test])

    fits = [fitted(epochs) for epochs in range(1, 9)]
    for fit, accuracy in fits:
        assert accuracy == fit.accuracy
    accuracies = [fit.accuracy for fit, _ in fits]
    assert accuracies == sorted(accuracies)
    last = fits[-1][0]
    assert fits[last.epoch - 1][0] == last
    assert all(fit.accuracy < last.accuracy for fit, _ in fits[: last.epoch - 1])


def test_pairs_held_out_are_not_learnt_from():
    chosen, rejected = clusters(50, distance=1.0)
    other = chosen.clone()
    other[held_out(50)] += 0.5  # moves the accuracy, not the fit of the only epoch
    probes = [RepresentationProbe(2, 8) for _ in range(2)]
    for probe, states in zip(probes, (chosen, other), strict=True):
        fit_probe(probe, states, rejected, held_out(50), epochs=1)
    assert torch.equal(probes[0].weight_LH, probes[1].weight_LH)


def test_a_step_on_the_own_ranking_confirms_it():
    """The co-loss: what ranks above ranks further above after the step, whoever is right."""
    probe = RepresentationProbe(2, 8)
    fit_probe(probe, *clusters(100, distance=1.0), held_out(100), epochs=3)
    states = normal(8, 2, 8, seed=5)
    with torch.no_grad():
        before = probe(states)
    best, worst = (states[i : i + 1] for i in (int(before.argmax()), int(before.argmin())))
    loss = probe_step(probe, torch.optim.Adam(probe.parameters(), lr=1e-3), best, worst)
    assert loss == pytest.approx(margin_losses(before.max(), before.min()).item(), rel=1e-5)
    with torch.no_grad():
        assert probe(best) - probe(worst) > before.max() - before.min()


@given(gaps, gaps)
def test_confidence_never_falls_in_the_gap(first, second):
    low, high = (label_confidence(gap, 7.5) for gap in sorted((first, second)))
    assert 0.5 <= low <= high < 1


def test_ranking_twice_is_ranking_once_and_the_best_of_eight_is_not_beaten(probe):
    scores_N, groups_N = probe(normal(24, LAYERS, WIDTH)).detach(), torch.arange(3).repeat_interleave(8)
    pairs = preference_pairs(scores_N, groups_N, "extreme")
    for q in range(3):
        assert (scores_N[pairs.chosen_P[q]] >= scores_N[groups_N == q]).all()
        assert (scores_N[pairs.rejected_P[q]] <= scores_N[groups_N == q]).all()
    both = torch.cat([pairs.rejected_P, pairs.chosen_P])  # given pairs, in the wrong order: ranked anew
    again = preference_pairs(scores_N[both], torch.arange(3).repeat(2), "extreme")
    assert torch.equal(both[again.chosen_P], pairs.chosen_P)
    assert torch.equal(both[again.rejected_P], pairs.rejected_P)


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=30))
def test_auc_is_the_share_of_pairs_in_order(drawn):
    scores, labels = np.array([s for s, _ in drawn]), np.array([y for _, y in drawn])
    if labels.all() or not labels.any():
        with pytest.raises(InvalidInputError, match="no area"):
            auc(scores, labels)
        return
    difference = scores[labels][:, None] - scores[~labels][None]
    expected = ((difference > 0) + 0.5 * (difference == 0)).mean()
    assert auc(scores, labels) == pytest.approx(expected, abs=1e-12)
    assert auc(np.exp(scores), labels) == auc(scores, labels)
    assert auc(-scores, labels) == pytest.approx(1 - expected, abs=1e-12)


def test_auc_within_leaves_out_one_sided_prompts_and_does_not_see_what_is_the_prompts():
    scores, labels = np.array([1.0, 2, 3, 4, 5, 6, 7]), np.array([0, 1, 1, 0, 1, 1, 1])
    groups = np.array([4, 4, 9, 9, 9, 2, 2])
    assert auc_within(scores, labels, groups) == pytest.approx((1.0 + 0.5) / 2)
    assert auc_within(scores + 10 * groups, labels, groups) == auc_within(scores, labels, groups)
    with pytest.raises(InvalidInputError, match="one-sided"):
        auc_within(scores, labels, np.array([4, 1, 9, 8, 9, 2, 2]))


@pytest.mark.parametrize(("scores", "labels"), [([1.0, np.nan], [0, 1]), ([1.0, 2.0, 3.0], [0, 1])])
def test_auc_refuses_what_has_none(scores, labels):
    with pytest.raises(InvalidInputError, match="no area"):
        auc(scores, labels)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_fit_needs_pairs_to_learn_from_and_pairs_held_out(share):
    with pytest.raises(InvalidInputError, match="cannot be fitted"):
        fit_probe(RepresentationProbe(2, 8), *clusters(10, distance=1.0), held_out(10, share))


def test_a_probe_refuses_other_layers():
    for wrong in (normal(3, 1, 8), normal(2, 8)):
        with pytest.raises(InvalidInputError, match="not what the probe reads"):
            RepresentationProbe(2, 8)(wrong)


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_states_that_are_not_finite_have_no_score(value):
    states = normal(3, 2, 8)
    states[1, 1, 3] = value
    with pytest.raises(InvalidInputError, match="rollout 1 is not finite"):
        RepresentationProbe(2, 8)(states)


def test_a_probe_that_has_diverged_gives_no_score():
    probe = RepresentationProbe(2, 8)
    nn.init.constant_(probe.bias_L, torch.inf)
    with pytest.raises(InvalidInputError, match="rollout 0 is not finite"):
        probe(normal(3, 2, 8))
