"""The sketch is the gradient of the summed log-probability in the output matrix, contracted with u v^T."""

import itertools

import pytest
import torch

from allotment.errors import InvalidInputError
from allotment.learning import SketchDirections, last_layer_scores, layer_scores

N, T, V, H, K = 5, 7, 11, 6, 4


@pytest.fixture
def forward():
    """Hidden states, an output matrix, drawn tokens and a ragged mask with a hole."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, T, H, generator=generator)
    matrix = torch.randn(V, H, generator=generator)
    tokens = torch.randint(0, V, (N, T), generator=generator)
    mask = torch.arange(T) < torch.tensor([7, 1, 4, 0, 6])[:, None]
    mask[2, 1] = False
    return hidden, matrix, tokens, mask


def gradients(hidden, matrix, tokens, mask):
    """[N, V, H] by autograd."""
    matrix = matrix.clone().requires_grad_()
    log_probs = (hidden @ matrix.T).log_softmax(-1).gather(2, tokens[:, :, None]).squeeze(2)
    totals = torch.where(mask, log_probs, 0.0).sum(1)
    return torch.stack([torch.autograd.grad(total, matrix, retain_graph=True)[0] for total in totals])


def test_it_is_the_contracted_gradient_of_autograd(forward):
    hidden, matrix, tokens, mask = forward
    directions = SketchDirections.random(K, V, H, seed=3)
    scores = last_layer_scores(hidden @ matrix.T, hidden, tokens, mask, directions)
    expected = torch.einsum("nvh,kv,kh->nk", gradients(*forward), directions.outputs_KO, directions.inputs_KI)
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-4)
    assert scores[3].tolist() == [0.0] * K  # an empty completion


def test_over_all_directions_the_mean_square_is_the_squared_norm():
    generator = torch.Generator().manual_seed(1)
    hidden, matrix = torch.randn(3, 4, 2, generator=generator), torch.randn(3, 2, generator=generator)
    tokens, mask = torch.randint(0, 3, (3, 4), generator=generator), torch.ones(3, 4, dtype=torch.bool)
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=5)))
    scores = last_layer_scores(hidden @ matrix.T, hidden, tokens, mask, SketchDirections(signs[:, :3], signs[:, 3:]))
    expected = gradients(hidden, matrix, tokens, mask).square().sum((1, 2))
    torch.testing.assert_close(scores.square().mean(1), expected, rtol=1e-4, atol=1e-5)


def test_inner_layers_by_autograd(forward):
    """A layer below a nonlinearity: the contracted gradient of its matrix; for the output matrix, the same as above."""
    _, matrix, tokens, mask = forward
    below = torch.randn(H, 3, generator=torch.Generator().manual_seed(4)).requires_grad_()
    inputs = torch.randn(N, T, 3, generator=torch.Generator().manual_seed(5))
    outputs = inputs @ below.T
    logits = torch.tanh(outputs).cumsum(1) @ matrix.T  # later tokens depend on earlier places
    log_probs = torch.where(mask, logits.log_softmax(-1).gather(2, tokens[:, :, None]).squeeze(2), 0.0).sum(1)
    wanted = torch.stack([torch.autograd.grad(total, below, retain_graph=True)[0] for total in log_probs])
    g_NTO, g_NTV = torch.autograd.grad(log_probs.sum(), [outputs, logits])
    everywhere = torch.ones(N, T)
    directions = SketchDirections.random(K, H, 3, seed=3)
    expected = torch.einsum("noi,ko,ki->nk", wanted, directions.outputs_KO, directions.inputs_KI)
    torch.testing.assert_close(layer_scores(inputs, g_NTO, everywhere, directions), expected, atol=1e-4, rtol=1e-4)
    top = SketchDirections.random(K, V, H)
    x = torch.tanh(outputs).cumsum(1)
    one, other = layer_scores(x, g_NTV, mask, top), last_layer_scores(logits, x, tokens, mask, top)
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    dirty = layer_scores(x.masked_fill(~mask[:, :, None], torch.nan), g_NTV, mask, top)
    assert torch.equal(dirty, one)


@pytest.mark.parametrize("chunk", [1, 4, 1000])
def test_chunks_rows_and_log_softmax_change_nothing(forward, chunk):
    hidden, matrix, tokens, mask = forward
    directions = SketchDirections.random(K, V, H)
    logits = hidden @ matrix.T
    whole = last_layer_scores(logits, hidden, tokens, mask, directions)
    chunked = last_layer_scores(logits.log_softmax(-1), hidden, tokens, mask, directions, chunk=chunk)
    torch.testing.assert_close(chunked, whole, atol=1e-5, rtol=1e-5)
    parts = [last_layer_scores(logits[r], hidden[r], tokens[r], mask[r], directions) for r in torch.arange(N).split(2)]
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-5, rtol=1e-5)


def test_outside_the_mask_anything_may_stand(forward):
    hidden, matrix, tokens, mask = forward
    directions = SketchDirections.random(K, V, H)
    whole = last_layer_scores(hidden @ matrix.T, hidden, tokens, mask, directions)
    logits = (hidden @ matrix.T).masked_fill(~mask[:, :, None], torch.nan).requires_grad_()
    dirty = last_layer_scores(
        logits,
        hidden.masked_fill(~mask[:, :, None], torch.inf),
        tokens.masked_fill(~mask, -100),
        mask.long(),
        directions,
    )
    assert torch.equal(dirty, whole)
    assert not dirty.requires_grad


def test_directions_are_a_function_of_the_seed():
    one, same, other = (SketchDirections.random(K, V, H, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(one.outputs_KO, same.outputs_KO)
    assert torch.equal(one.inputs_KI, same.inputs_KI)
    assert not torch.equal(one.outputs_KO, other.outputs_KO)
    assert torch.equal(one.to("cpu").inputs_KI, one.inputs_KI)
    assert set(one.outputs_KO.unique().tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize(
    ("shapes", "named"),
    [
        ({"logits": (N, T, V + 1)}, "logits"),
        ({"logits": (N, T - 1, V)}, "logits"),
        ({"hidden": (N, T, H + 1)}, "hidden"),
        ({"mask": (N, T - 1)}, "mask"),
        ({"mask": (N - 1, T)}, "mask"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shapes, named):
    inputs = {"logits": (N, T, V), "hidden": (N, T, H), "tokens": (N, T), "mask": (N, T)} | shapes
    zeros = [
        torch.zeros(shape, dtype=torch.long if name in ("tokens", "mask") else None) for name, shape in inputs.items()
    ]
    with pytest.raises(InvalidInputError, match=named):
        last_layer_scores(*zeros, SketchDirections.random(K, V, H))
