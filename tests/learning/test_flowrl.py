import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq

from allotment.errors import ConfigError, InvalidInputError
from allotment.learning import aggregate
from allotment.learning.record import TokenRecord
from allotment.methods.objectives.flowrl import FlowRL

SEQUENCES = [(0,), *((a, b) for a in (1, 2) for b in (0, 1, 2))]
"""Everything a policy over three tokens can write, where token 0 ends and two tokens are the most."""
LENGTHS = torch.tensor([len(s) for s in SEQUENCES])
MASK = torch.tensor([[True, len(s) > 1] for s in SEQUENCES])


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def flowrl(log_z=0.0, **settings):
    """With a partition function that is constant."""
    objective = FlowRL(**{"width": 2, "beta": 1.0, "dropout": 0.0, **settings})
    objective.module.double()
    with torch.no_grad():
        objective.module.last.weight.zero_()
        objective.module.last.bias.fill_(log_z)
    return objective


def token_log_probs(logits_43):
    """[7, 2] of every sequence: one row of logits for the first token, one for the second after each first."""
    log_p_43 = logits_43.log_softmax(-1)
    second = [log_p_43[1 + s[0], s[1]] if len(s) > 1 else log_p_43.new_tensor(math.nan) for s in SEQUENCES]
    return torch.stack([torch.stack([log_p_43[0, s[0]] for s in SEQUENCES]), torch.stack(second)], 1)


def random_logits(seed):
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def record(log_probs_NT, reference_NT, advantages_N, old_NT=None, mask_NT=MASK):
    return TokenRecord(
        log_probs_NT=log_probs_NT,
        old_log_probs_NT=(log_probs_NT if old_NT is None else old_NT).detach(),
        advantages_N=advantages_N,
        mask_NT=mask_NT[: len(log_probs_NT), : log_probs_NT.shape[1]],
        group_ids_N=torch.zeros(len(log_probs_NT), dtype=torch.int64),
        reference_log_probs_NT=reference_NT.detach(),
        prompt_hidden_NH=torch.ones(len(log_probs_NT), 2, dtype=torch.float64),
    )


def of_rollouts(log_probs_NT):
    return torch.where(MASK, log_probs_NT, 0.0).sum(1)


def one_token(pi, reference, rewards):
    """All answers of a policy that writes one token."""
    return record(pi[:, None], reference[:, None], rewards, mask_NT=torch.ones(len(pi), 1, dtype=torch.bool))


def residuals_squared(objective, of):
    return objective.loss(of).values_NT.sum(1)


REFERENCE, REWARD = f64(0.6, 0.3, 0.1).log(), f64(1, 0, -1)


def test_the_fixture_of_the_sheet():
    z = (REFERENCE + REWARD).exp().sum()
    target = (REFERENCE + REWARD).exp() / z
    assert z.item() == pytest.approx(1.96776, abs=5e-6)
    assert target.tolist() == pytest.approx([0.82885, 0.15246, 0.01870], abs=5e-6)
    squares = residuals_squared(flowrl(z.log().item()), one_token(target.log(), REFERENCE, REWARD))
    assert squares.abs().max() < 1e-12
    assert residuals_squared(flowrl(0.5), one_token(target.log(), REFERENCE, REWARD)).min() > 0.01
    assert residuals_squared(flowrl(z.log().item()), one_token(REFERENCE, REFERENCE, REWARD)).min() > 0.1


def test_descent_on_policy_and_partition_function_ends_at_the_target():
    objective = flowrl()
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits, objective.module.last.bias], lr=0.05)
    for _ in range(1500):
        optimizer.zero_grad()
        log_pi = logits.log_softmax(-1)
        (log_pi.detach().exp() * residuals_squared(objective, one_token(log_pi, REFERENCE, REWARD))).sum().backward()
        optimizer.step()
    assert logits.softmax(-1).tolist() == pytest.approx([0.82885, 0.15246, 0.01870], abs=1e-5)
    assert objective.module.last.bias.item() == pytest.approx(math.log(1.96776), abs=1e-5)


@given(st.integers(0, 10_000), st.floats(-5, 5), st.floats(0.1, 20))
def test_the_on_policy_gradient_is_twice_that_of_the_reverse_kl(seed, log_z, beta):
    """For any constant log Z, over everything that a policy of several tokens can write."""
    logits, reference_NT = random_logits(seed).requires_grad_(), token_log_probs(random_logits(seed + 1))
    rewards_N = torch.randn(7, generator=torch.Generator().manual_seed(seed + 2), dtype=torch.float64)
    log_pi_NT = token_log_probs(logits)
    pi_N, log_pi_N = of_rollouts(log_pi_NT).exp(), of_rollouts(log_pi_NT)
    objective = flowrl(log_z, beta=beta, normalisation="none")
    loss = (pi_N.detach() * residuals_squared(objective, record(log_pi_NT, reference_NT, rewards_N))).sum()
    (got,) = torch.autograd.grad(loss, logits, retain_graph=True)
    unnormalised_N = of_rollouts(reference_NT) + beta * rewards_N
    kl = (pi_N * (log_pi_N - unnormalised_N.log_softmax(0))).sum()
    (expected,) = torch.autograd.grad(kl, logits)
    torch.testing.assert_close(got, 2 * expected, atol=1e-9, rtol=1e-9)


@given(st.integers(0, 10_000))
def test_the_best_constant_log_z_of_a_policy_is_short_of_the_true_one_by_its_kl(seed):
    log_pi_NT, reference_NT = token_log_probs(random_logits(seed)), token_log_probs(random_logits(seed + 1))
    rewards_N = torch.randn(7, generator=torch.Generator().manual_seed(seed + 2), dtype=torch.float64)
    log_pi_N, pi_N = of_rollouts(log_pi_NT), of_rollouts(log_pi_NT).exp()
    unnormalised_N = of_rollouts(reference_NT) + rewards_N
    kl = (pi_N * (log_pi_N - unnormalised_N.log_softmax(0))).sum()
    best = (unnormalised_N.logsumexp(0) - kl).item()
    objective = flowrl(best, normalisation="none")
    (pi_N * residuals_squared(objective, record(log_pi_NT, reference_NT, rewards_N))).sum().backward()
    assert abs(objective.module.last.bias.grad.item()) < 1e-9
    assert best == pytest.approx((pi_N * (unnormalised_N - log_pi_N)).sum().item())
    assert best <= unnormalised_N.logsumexp(0).item() + 1e-12


@given(st.integers(0, 10_000), st.floats(-10, 10), st.sampled_from(["length", "none"]))
def test_a_constant_in_all_rewards_is_taken_up_by_log_z(seed, constant, normalisation):
    log_pi_NT, reference_NT = token_log_probs(random_logits(seed)), token_log_probs(random_logits(seed + 1))
    rewards_N = torch.randn(7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    squared = [
        residuals_squared(flowrl(0.3 + c, normalisation=normalisation), record(log_pi_NT, reference_NT, rewards_N + c))
        for c in (0.0, constant)
    ]
    torch.testing.assert_close(squared[0], squared[1], atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_the_fixed_point_with_length_normalisation(seed):
    """pi proportional to pi_ref exp(|y| (beta A - log Z)), with the log Z at which that sums to one."""
    reference_NT = token_log_probs(random_logits(seed))
    rewards_N = torch.randn(7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def log_target(log_z):
        return of_rollouts(reference_NT) + LENGTHS * (2 * rewards_N - log_z)

    log_z = brentq(lambda value: log_target(value).logsumexp(0).item(), -20, 20, xtol=1e-14)
    target_N = log_target(log_z).exp()
    first = torch.stack([target_N[0], target_N[1:4].sum(), target_N[4:].sum()])
    second = [target_N[1:4] / first[1], target_N[4:] / first[2]]
    log_pi_NT = token_log_probs(torch.stack([first, first, *second]).log())
    torch.testing.assert_close(of_rollouts(log_pi_NT).exp(), target_N)
    assert residuals_squared(flowrl(log_z, beta=2.0), record(log_pi_NT, reference_NT, rewards_N)).max() < 1e-20
    plain = flowrl(log_z, beta=2.0, normalisation="none")
    assert residuals_squared(plain, record(log_pi_NT, reference_NT, rewards_N)).max() > 1e-3


@pytest.mark.parametrize(
    ("weight", "expected"),
    [("both", (0.8, 1.0, 1.2)), ("above", (0.1, 1.0, 10.0)), ("unclipped", (0.1, 1.0, 30.0)), ("none", (1, 1, 1))],
)
def test_the_trajectory_weight_multiplies_the_loss_and_has_no_gradient(weight, expected):
    """Ratios 0.1, 1 and 30 of rollouts of two tokens, which only together are beyond the clip."""
    log_pi_NT = torch.log(f64([0.3, 0.5], [0.2, 0.7], [0.6, 0.4])).requires_grad_()
    old_NT = log_pi_NT.detach() - torch.log(f64(0.1, 1.0, 30.0))[:, None] / 2
    reference_NT, advantages_N = torch.log(torch.full((3, 2), 0.5, dtype=torch.float64)), f64(1.0, -0.5, 0.2)
    mask_NT = torch.ones(3, 2, dtype=torch.bool)
    loss = flowrl(0.1, weight=weight).loss(record(log_pi_NT, reference_NT, advantages_N, old_NT, mask_NT))
    residuals_N = 0.1 + (log_pi_NT - reference_NT).detach().mean(1) - advantages_N
    torch.testing.assert_close(loss.values_NT.sum(1).detach(), f64(*expected) * residuals_N**2)
    (gradient_NT,) = torch.autograd.grad(loss.values_NT.sum(), log_pi_NT)
    torch.testing.assert_close(gradient_NT, (f64(*expected) * residuals_N)[:, None].expand(3, 2))  # 2 w d / |y|
    assert loss.metrics["mean_weight"].item() == pytest.approx(np.mean(expected))
    changed = {"both": 2 / 3, "above": 1 / 3, "unclipped": 0, "none": 2 / 3}[weight]
    assert loss.metrics["clipped_fraction"].item() == pytest.approx(changed)


def test_equal_rewards_leave_the_pull_to_the_reference_alone():
    logits = random_logits(0).requires_grad_()
    log_pi_NT, reference_NT = token_log_probs(logits), token_log_probs(random_logits(1))
    of = record(log_pi_NT, reference_NT, torch.zeros(7, dtype=torch.float64))
    expected_N = ((of_rollouts(log_pi_NT) - of_rollouts(reference_NT)) / LENGTHS).square()
    torch.testing.assert_close(residuals_squared(flowrl(beta=15.0), of), expected_N)
    at_reference = record(reference_NT, reference_NT, torch.zeros(7, dtype=torch.float64))
    assert residuals_squared(flowrl(beta=15.0), at_reference).abs().max() == 0


def test_weights_of_length_sum_make_every_rollout_count_once():
    """sum of weights times values = mean over prompts of the mean over rollouts of w d^2, whatever the lengths."""
    log_pi_NT, reference_NT = token_log_probs(random_logits(2)), token_log_probs(random_logits(3))
    of = replace(
        record(log_pi_NT, reference_NT, torch.randn(7, dtype=torch.float64)),
        group_ids_N=torch.tensor([5, 5, 5, 9, 9, 9, 9]),
    )
    values_NT = flowrl(0.4).loss(of).values_NT
    squares_N = (0.4 + (of_rollouts(log_pi_NT) - of_rollouts(reference_NT)) / LENGTHS - of.advantages_N).square()
    got = aggregate(values_NT, of.group_ids_N, MASK, length="sum")
    torch.testing.assert_close(got, (squares_N[:3].mean() + squares_N[3:].mean()) / 2)
    assert (values_NT[~MASK] == 0).all()


def test_an_empty_rollout_is_counted_and_left_out():
    log_pi_NT, reference_NT = token_log_probs(random_logits(2)), token_log_probs(random_logits(3))
    advantages_N = torch.randn(7, dtype=torch.float64)
    mask_NT = MASK.clone()
    mask_NT[6] = False
    whole, some = (record(log_pi_NT, reference_NT, advantages_N, mask_NT=m) for m in (MASK, mask_NT))
    losses = [flowrl(0.2).loss(of) for of in (whole, some)]
    torch.testing.assert_close(losses[0].values_NT[:6], losses[1].values_NT[:6])
    assert (losses[1].values_NT[6] == 0).all()
    assert [loss.metrics["empty"].item() for loss in losses] == [0, 1]
    first_six = losses[0].values_NT[:6].sum().item() / 6
    assert losses[1].metrics["squared_residual"].item() == pytest.approx(first_six)


def test_log_z_follows_the_prompt_and_the_head_is_three_layers():
    objective = FlowRL(width=8, dropout=0.0)
    assert [tuple(p.shape) for p in objective.module.parameters() if p.ndim == 2] == [(8, 8), (8, 8), (1, 8)]
    assert objective.beta == 15
    log_z_N = objective.module(torch.eye(3, 8).repeat(2, 1))
    torch.testing.assert_close(log_z_N[:3], log_z_N[3:])
    assert len({round(log_z, 4) for log_z in log_z_N.tolist()}) == 3


def test_dropout_repeats_after_a_restore_and_leaves_other_random_numbers_alone():
    objective, hidden_NH = FlowRL(width=8, seed=3), torch.ones(4, 8)
    torch.manual_seed(0)
    first = objective.module(hidden_NH)
    state = {name: value.clone() for name, value in objective.module.state_dict().items()}
    second = objective.module(hidden_NH)
    after = torch.rand(1)
    assert not torch.equal(first, second)
    other = FlowRL(width=8, seed=3)
    other.module.load_state_dict(state)
    assert torch.equal(other.module(hidden_NH), second)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(1), after)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reference_log_probs_NT": None}, "the reference policy must provide it"),
        ({"prompt_hidden_NH": None}, "prompt_hidden_NH.*the trainer must provide it"),
        ({"advantages_N": torch.full((7,), math.nan, dtype=torch.float64)}, "residual of rollout 0 is not finite"),
    ],
)
def test_what_is_missing_or_not_finite_is_named(changes, message):
    log_pi_NT = token_log_probs(random_logits(0))
    of = replace(record(log_pi_NT, log_pi_NT, torch.zeros(7, dtype=torch.float64)), **changes)
    with pytest.raises(InvalidInputError, match=f"(?s){message}"):
        flowrl().loss(of)


@pytest.mark.parametrize(
    "settings",
    [{"beta": 0}, {"beta": math.inf}, {"normalisation": "tokens"}, {"weight": "below"}, {"clip": 2}, {"cap": 0.5},
     {"dropout": 1.0}],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(settings):
    with pytest.raises(ConfigError, match="flowrl cannot have this"):
        FlowRL(width=2, **settings)
