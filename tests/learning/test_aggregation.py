import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from allotment.errors import ConfigError, InvalidInputError
from allotment.learning import aggregate, rollout_weights

NAMES = ["prompt_mean", "sequence_mean", "token_mean"]
# rollouts as (group id, tokens)
batches = st.lists(st.tuples(st.integers(0, 4), st.integers(1, 6)), min_size=1, max_size=20)

IDS = torch.tensor([5, 2, 5, 5])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0]])


def tensors(rollouts):
    ids, lengths = zip(*rollouts, strict=True)
    return torch.tensor(ids), torch.arange(6) < torch.tensor(lengths)[:, None]


def weights64(ids_N, mask_NT, *args, **kwargs):
    return rollout_weights(ids_N, mask_NT, *args, dtype=torch.float64, **kwargs)


@pytest.mark.parametrize(
    ("aggregation", "length", "first_token"),
    [
        ("prompt_mean", "mean", [1 / 24, 1 / 4, 1 / 6, 1 / 12]),  # 1/(Q n |o|): Q = 2, n = 3, 1, |o| = 4, 2, 1, 2
        ("prompt_mean", "sum", [1 / 6, 1 / 2, 1 / 6, 1 / 6]),
        ("prompt_mean", 10, [1 / 60, 1 / 20, 1 / 60, 1 / 60]),
        ("sequence_mean", "mean", [1 / 16, 1 / 8, 1 / 4, 1 / 8]),
        ("sequence_mean", "sum", [1 / 4] * 4),
        ("token_mean", "mean", [1 / 9] * 4),
    ],
)
def test_by_hand(aggregation, length, first_token):
    expected = torch.tensor(first_token, dtype=torch.float64)[:, None] * MASK
    torch.testing.assert_close(weights64(IDS, MASK, aggregation, length=length), expected)


@pytest.mark.parametrize("name", NAMES)
@given(batches)
def test_weights_sum_to_one(name, rollouts):
    assert float(weights64(*tensors(rollouts), name).sum()) == pytest.approx(1, abs=1e-12)


@given(batches)
def test_every_prompt_has_the_same_weight_by_default(rollouts):
    ids_N, mask_NT = tensors(rollouts)
    weights_N = weights64(ids_N, mask_NT).sum(1)
    prompts = ids_N.unique()
    for i in prompts:
        assert float(weights_N[ids_N == i].sum()) == pytest.approx(1 / len(prompts), abs=1e-12)


@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 5))
def test_equal_sizes_and_lengths_make_all_three_coincide(prompts, n, tokens):
    ids_N, mask_NT = torch.arange(prompts).repeat(n), torch.ones(prompts * n, tokens)
    first = weights64(ids_N, mask_NT, "prompt_mean")
    for name in ("sequence_mean", "token_mean"):
        torch.testing.assert_close(weights64(ids_N, mask_NT, name), first)


@pytest.mark.parametrize("name", NAMES)
@given(batches, st.randoms(use_true_random=False))
def test_permutation_equivariant(name, rollouts, random):
    order = list(range(len(rollouts)))
    random.shuffle(order)
    ids_N, mask_NT = tensors(rollouts)
    expected = weights64(ids_N, mask_NT, name)[order]
    torch.testing.assert_close(weights64(ids_N[order], mask_NT[order], name), expected)


@pytest.mark.parametrize("name", NAMES)
@given(batches, st.randoms(use_true_random=False))
def test_a_part_that_knows_the_whole_has_the_weights_of_the_whole(name, rollouts, random):
    """Groups straddle the parts at random; what a part cannot see is passed."""
    ids_N, mask_NT = tensors(rollouts)
    part_N = torch.tensor([random.random() < 0.5 for _ in rollouts])
    if not part_N.any():
        return
    sizes_N = (ids_N[:, None] == ids_N).sum(1)
    total = {"prompt_mean": len(ids_N.unique()), "sequence_mean": len(ids_N), "token_mean": int(mask_NT.sum())}[name]
    part = weights64(ids_N[part_N], mask_NT[part_N], name, group_sizes_N=sizes_N[part_N], total=total)
    torch.testing.assert_close(part, weights64(ids_N, mask_NT, name)[part_N])


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_sliced_micro_batches_add_up(name):
    torch.manual_seed(0)
    values_NT = torch.randn(4, 4, requires_grad=True)
    aggregate(values_NT, IDS, MASK, name).backward()
    whole, values_NT.grad = values_NT.grad, None
    weights_NT = rollout_weights(IDS, MASK, name)
    for rows in ([0, 1], [2, 3]):  # group 5 straddles the two
        (weights_NT[rows] * values_NT[rows]).sum().backward()
    torch.testing.assert_close(values_NT.grad, whole)


@pytest.mark.parametrize("name", NAMES)
def test_values_outside_the_mask_do_not_matter(name):
    values_NT = torch.where(MASK.bool(), 3.0, torch.nan).requires_grad_()
    loss = aggregate(values_NT, IDS, MASK, name)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(3.0)
    assert torch.isfinite(values_NT.grad).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_rollout_without_tokens_has_no_weight_but_counts(name):
    mask_NT = MASK.clone()
    mask_NT[2] = 0
    weights_N = weights64(IDS, mask_NT, name).sum(1)
    assert weights_N[2] == 0
    assert float(weights_N[0]) == pytest.approx(
        {"prompt_mean": 1 / 6, "sequence_mean": 1 / 4, "token_mean": 1 / 2}[name]
    )
    assert not weights64(IDS, 0 * MASK, name).any()


def test_refusals():
    with pytest.raises(ConfigError, match="prompt_mean, sequence_mean, token_mean"):
        rollout_weights(IDS, MASK, "mean")
    for length in ("max", 0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="length"):
            rollout_weights(IDS, MASK, length=length)
    with pytest.raises(ConfigError, match="token_mean"):
        rollout_weights(IDS, MASK, "token_mean", length="sum")
    with pytest.raises(ConfigError, match="without total"):
        rollout_weights(IDS, MASK, group_sizes_N=torch.tensor([3, 1, 3, 3]))
    for mask in (MASK[:3], MASK[0], 0.5 * MASK):
        with pytest.raises(InvalidInputError, match="mask"):
            rollout_weights(IDS, mask)
    for sizes in (torch.tensor([3, 1, 3]), torch.tensor([2, 1, 2, 2])):
        with pytest.raises(InvalidInputError, match="sizes"):
            rollout_weights(IDS, MASK, group_sizes_N=sizes, total=2)
    with pytest.raises(InvalidInputError, match="total"):
        rollout_weights(IDS, MASK, total=0)


@pytest.mark.parametrize("aggregation", ["prompt_mean", "sequence_mean", "token_mean"])
def test_a_belief_is_refused_beside_a_divisor_that_depends_on_the_rollout(aggregation):
    groups, mask = torch.tensor([0, 0, 1]), torch.ones(3, 2)
    with pytest.raises(ConfigError, match="length='sum'"):
        rollout_weights(groups, mask, aggregation, length="mean", believed=True)
    assert rollout_weights(groups, mask, "prompt_mean", length=7.0, believed=True).sum() == pytest.approx(2 * 2 / 2 / 7)
