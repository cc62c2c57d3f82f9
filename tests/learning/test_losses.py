import math

import pytest
import torch

from allotment.errors import InvalidInputError
from allotment.learning import clipped_surrogate

ONE = torch.ones(1, 1)


def surrogate(ratio, advantage, **clips):
    """Loss and gradient with respect to log pi of a single token with this ratio."""
    log_prob = torch.full((1, 1), math.log(ratio) - 1.0, dtype=torch.float64, requires_grad=True)
    loss = clipped_surrogate(log_prob, torch.full_like(log_prob, -1.0), torch.tensor([advantage]), ONE, **clips)
    loss.values_NT.sum().backward()
    return float(loss.values_NT.detach()), float(log_prob.grad), float(loss.metrics["clip_fraction"])


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "clipped"),
    [
        (1.1, 2.0, -2.2, -2.2, 0),  # inside
        (1.5, 2.0, -2.4, 0.0, 1),  # too likely already, and good: stop
        (0.5, 2.0, -1.0, -1.0, 0),  # too unlikely, and good: push
        (1.5, -2.0, 3.0, 3.0, 0),  # too likely, and bad: push
        (0.5, -2.0, 1.6, 0.0, 1),  # too unlikely already, and bad: stop
        (1.5, 0.0, 0.0, 0.0, 0),  # no advantage: nothing to clip
    ],
)
def test_clipping_by_hand(ratio, advantage, loss, gradient, clipped):
    assert surrogate(ratio, advantage) == pytest.approx((loss, gradient, clipped), abs=1e-6)


def test_the_two_clips_are_independent():
    assert surrogate(1.25, 1.0, clip_high=0.28)[1] == pytest.approx(-1.25)
    assert surrogate(1.25, 1.0, clip_low=0.28)[1] == 0
    assert surrogate(0.75, -1.0, clip_low=0.28)[1] == pytest.approx(0.75)
    assert surrogate(0.75, -1.0, clip_high=0.28)[1] == 0


def test_on_policy_gradient_is_the_policy_gradient():
    torch.manual_seed(0)
    logits_NTV = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    tokens_NT = torch.randint(5, (3, 4))
    mask_NT = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]])
    advantages_N = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)

    def log_probs():
        return logits_NTV.log_softmax(-1).gather(-1, tokens_NT[..., None])[..., 0]

    log_probs_NT = log_probs()
    loss = clipped_surrogate(log_probs_NT, log_probs_NT.detach(), advantages_N, mask_NT)
    (got,) = torch.autograd.grad(loss.values_NT.sum(), logits_NTV)
    (expected,) = torch.autograd.grad((-advantages_N[:, None] * log_probs() * mask_NT).sum(), logits_NTV)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(loss.values_NT.detach(), -advantages_N[:, None] * mask_NT)
    assert float(loss.metrics["mean_ratio"]) == 1
    assert float(loss.metrics["clip_fraction"]) == 0


def test_metrics_count_the_tokens_of_the_mask_only():
    ratios_NT = torch.tensor([[1.5, 1.0, 9.0], [0.5, 9.0, 9.0]])
    mask_NT = torch.tensor([[True, True, False], [True, False, False]])
    loss = clipped_surrogate(ratios_NT.log(), torch.zeros(2, 3), torch.tensor([1.0, 1.0]), mask_NT)
    assert float(loss.metrics["clip_fraction"]) == pytest.approx(1 / 3)
    assert float(loss.metrics["mean_ratio"]) == pytest.approx(1.0)


@pytest.mark.parametrize("padding", [float("nan"), -float("inf"), float("inf")])
def test_padding_may_be_anything(padding):
    log_probs_NT = torch.tensor([[-1.0, padding]], requires_grad=True)
    loss = clipped_surrogate(log_probs_NT, log_probs_NT.detach(), torch.tensor([2.0]), torch.tensor([[1, 0]]))
    loss.values_NT.sum().backward()
    assert loss.values_NT.tolist() == [[-2.0, 0.0]]
    assert log_probs_NT.grad.tolist() == [[-2.0, 0.0]]


def test_no_gradient_to_the_old_policy_or_the_advantages():
    new, old, advantages = (torch.zeros(s, requires_grad=True) for s in ((1, 1), (1, 1), (1,)))
    clipped_surrogate(new, old, advantages + 1, ONE).values_NT.sum().backward()
    assert new.grad is not None
    assert old.grad is None
    assert advantages.grad is None


def test_refusals():
    zero_NT, advantages_N, mask_NT = torch.zeros(2, 3), torch.zeros(2), torch.ones(2, 3)
    for case in (
        (zero_NT, zero_NT[:, :2], advantages_N, mask_NT),
        (zero_NT, zero_NT, advantages_N[:1], mask_NT),
        (zero_NT, zero_NT, zero_NT, mask_NT),
        (zero_NT, zero_NT, advantages_N, mask_NT[:, :2]),
    ):
        with pytest.raises(InvalidInputError, match="do not fit"):
            clipped_surrogate(*case)
    with pytest.raises(InvalidInputError, match="mask"):
        clipped_surrogate(zero_NT, zero_NT, advantages_N, 0.5 * mask_NT)
    bad_NT = zero_NT.clone()
    bad_NT[1, 2] = torch.nan
    with pytest.raises(InvalidInputError, match=r"log-ratio at index \(1, 2\)"):
        clipped_surrogate(bad_NT, zero_NT, advantages_N, mask_NT)
    with pytest.raises(InvalidInputError, match=r"advantage at index \(1,\)"):
        clipped_surrogate(zero_NT, zero_NT, torch.tensor([0.0, torch.inf]), mask_NT)
    for clips in ({"clip_low": 1.1}, {"clip_low": -0.1}, {"clip_high": -0.1}):
        with pytest.raises(InvalidInputError, match="clip range"):
            clipped_surrogate(zero_NT, zero_NT, advantages_N, mask_NT, **clips)
