import math
from dataclasses import replace

import pytest
import torch

from allotment.errors import ConfigError, InvalidInputError
from allotment.learning.record import HeadMoments, TokenRecord
from allotment.methods.objectives.capo import CAPO, adam_displacement, predicted_changes

INFINITE = {"tau_policy": math.inf, "tau_objective": math.inf}


def head_of(weight_VH, *, steps=7, learning_rate=0.01, seed=0):
    """Moments as they are after some steps: the second is at least the square of the first."""
    random = torch.Generator().manual_seed(seed)
    first_VH = 0.1 * torch.randn(weight_VH.shape, generator=random, dtype=weight_VH.dtype)
    second_VH = first_VH**2 * torch.rand(weight_VH.shape, generator=random, dtype=weight_VH.dtype) + 1e-4
    if steps == 0:
        first_VH, second_VH = torch.zeros_like(weight_VH), torch.zeros_like(weight_VH)
    return HeadMoments(weight_VH, first_VH, second_VH, steps, learning_rate, (0.9, 0.999), 1e-8)


def random_tokens(seed=0, tokens=60, vocabulary=25, width=6):
    random = torch.Generator().manual_seed(seed)
    weight_VH = torch.randn(vocabulary, width, generator=random, dtype=torch.float64)
    hidden_MH = torch.randn(tokens, width, generator=random, dtype=torch.float64)
    tokens_M = torch.randint(vocabulary, (tokens,), generator=random)
    return hidden_MH, tokens_M, torch.randn(tokens, generator=random, dtype=torch.float64), head_of(weight_VH)


def record_of(hidden_MH, tokens_M, advantages_M, head, columns=1):
    """Tokens laid out in rows of ``columns``; the advantage of a row is that of its first token."""
    shape = (-1, columns)
    log_probs_M = (hidden_MH @ head.weight_VH.T).log_softmax(-1).gather(1, tokens_M[:, None])[:, 0]
    log_probs_NT = log_probs_M.view(shape).clone().requires_grad_()
    rows = len(log_probs_NT)
    return TokenRecord(
        log_probs_NT,
        log_probs_NT.detach(),
        advantages_M.view(shape)[:, 0],
        torch.ones(rows, columns, dtype=torch.bool),
        torch.zeros(rows, dtype=torch.int64),
        tokens_NT=tokens_M.view(shape),
        hidden_NTH=hidden_MH.view(rows, columns, -1),
        head=head,
    )


def adam_step(gradient_VH, head):
    """Ghat by torch's own Adam: what it adds to the weights for a loss of gradient -G, over the learning rate."""
    weight = torch.nn.Parameter(head.weight_VH.clone())
    optimizer = torch.optim.Adam([weight], lr=head.learning_rate, betas=head.betas, eps=head.epsilon)
    moments = {"exp_avg": head.first_VH.clone(), "exp_avg_sq": head.second_VH.clone()}
    optimizer.state[weight] = {"step": torch.tensor(float(head.steps)), **moments}
    weight.grad = -gradient_VH
    optimizer.step()
    return (weight.detach() - head.weight_VH) / head.learning_rate


def token_gradient(hidden_H, token, advantage, head):
    """G by autograd."""
    weight = head.weight_VH.clone().requires_grad_()
    (advantage * (weight @ hidden_H).log_softmax(-1)[token]).backward()
    return weight.grad


def test_the_fixture_of_the_sheet():
    """pi = (.7, .2, .1), a = 1, A = 1, h = (1, 2), learning rate .01, the step being the gradient."""
    hidden_MH = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    logits_V = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64).log()
    head = head_of(logits_V[:, None] * hidden_MH / 5, learning_rate=0.01)
    got = predicted_changes(hidden_MH, torch.tensor([1]), torch.ones(1, dtype=torch.float64), head, step_model="sgd")
    assert got.objective_M.item() == pytest.approx(0.058179, abs=1e-7)
    assert got.policy_M.item() == pytest.approx(0.0016245, abs=1e-7)


def test_adams_displacement_is_that_of_torchs_adam():
    hidden_MH, tokens_M, advantages_M, head = random_tokens()
    vocabulary = len(head.weight_VH)
    for i in range(20):
        gradient_VH = token_gradient(hidden_MH[i], tokens_M[i], advantages_M[i], head)
        expected_V = adam_step(gradient_VH, head) @ hidden_MH[i]
        slope_V = gradient_VH @ hidden_MH[i] / hidden_MH[i].square().sum()
        rows_V, own_V = torch.arange(vocabulary), torch.full((vocabulary,), i)
        got_V = adam_displacement(slope_V, rows_V, hidden_MH, own_V, head)
        torch.testing.assert_close(got_V, expected_V, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("step_model", ["adam", "sgd"])
def test_changes_are_the_second_order_expansion_of_the_real_ones(step_model):
    """Along lr Ghat, ``A pi(a) / pi_0(a)`` has the derivatives that the objective's change is made of."""
    hidden_MH, tokens_M, advantages_M, head = random_tokens(1)
    got = predicted_changes(hidden_MH, tokens_M, advantages_M, head, step_model=step_model)
    for i in range(20):
        gradient_VH = token_gradient(hidden_MH[i], tokens_M[i], advantages_M[i], head)
        direction_VH = adam_step(gradient_VH, head) if step_model == "adam" else gradient_VH

        def log_p(length, i=i, direction_VH=direction_VH):
            logits_V = (head.weight_VH + length * direction_VH) @ hidden_MH[i]
            return logits_V.log_softmax(-1)[tokens_M[i]]

        def objective(length, i=i, log_p=log_p):
            return advantages_M[i] * (log_p(length) - log_p(0.0)).exp()

        zero = torch.zeros((), dtype=torch.float64, requires_grad=True)
        slope = torch.autograd.grad(objective(zero), zero, create_graph=True)[0]
        curvature = torch.autograd.grad(slope, zero)[0]
        lr, h = head.learning_rate, 1e-5
        expected = lr * slope + lr**2 / 2 * curvature
        assert got.objective_M[i].item() == pytest.approx(expected.item(), rel=1e-9, abs=1e-12)
        difference = (objective(h) - objective(-h)) / (2 * h)
        assert slope.item() == pytest.approx(difference.item(), rel=1e-6, abs=1e-7)
        score = torch.autograd.grad(log_p(zero), zero)[0]
        assert got.policy_M[i].item() == pytest.approx((lr**2 / 2 * score**2).item(), rel=1e-9)


def test_the_mean_policy_change_is_the_kl_divergence_to_second_order():
    """Without advantage Adam's step is its momentum, the same for every token; the mean over a ~ pi then is the KL."""
    hidden_MH, _, _, head = random_tokens(2, tokens=1)
    vocabulary = len(head.weight_VH)
    pi_V = (head.weight_VH @ hidden_MH[0]).softmax(-1)
    direction_VH, ratios = adam_step(torch.zeros_like(head.weight_VH), head), []
    for learning_rate in (0.1, 0.01, 0.001):
        got = predicted_changes(
            hidden_MH.expand(vocabulary, -1),
            torch.arange(vocabulary),
            torch.zeros(vocabulary),
            replace(head, learning_rate=learning_rate),
        )
        moved_V = ((head.weight_VH + learning_rate * direction_VH) @ hidden_MH[0]).log_softmax(-1)
        ratios.append(((pi_V * got.policy_M).sum() / (pi_V * (pi_V.log() - moved_V)).sum()).item())
        assert (got.policy_M >= 0).all()
        assert (got.objective_M == 0).all()
    assert abs(ratios[2] - 1) < 0.002
    assert abs(ratios[2] - 1) < abs(ratios[1] - 1) < abs(ratios[0] - 1)


def test_the_plain_gradient_model_scales_as_it_must():
    hidden_MH, tokens_M, advantages_M, head = random_tokens(3)

    def changes(advantages_M, learning_rate=0.01):
        return predicted_changes(
            hidden_MH, tokens_M, advantages_M, replace(head, learning_rate=learning_rate), step_model="sgd"
        )

    nothing, once, twice = changes(0 * advantages_M), changes(advantages_M), changes(2 * advantages_M)
    assert nothing.policy_M.abs().max() == nothing.objective_M.abs().max() == 0
    torch.testing.assert_close(twice.policy_M, 4 * once.policy_M)
    torch.testing.assert_close(changes(advantages_M, 0.03).policy_M, 9 * once.policy_M)
    tiny = changes(advantages_M, 1e-6)  # to first order the objective rises by lr |G|^2
    squares_M = torch.stack(
        [token_gradient(*given, head).square().sum() for given in zip(hidden_MH, tokens_M, advantages_M, strict=True)]
    )
    torch.testing.assert_close(tiny.objective_M, 1e-6 * squares_M, rtol=1e-4, atol=1e-12)


def test_before_the_first_step_adam_is_the_gradient():
    hidden_MH, tokens_M, advantages_M, head = random_tokens(4)
    fresh = head_of(head.weight_VH, steps=0)
    adam, sgd = (predicted_changes(hidden_MH, tokens_M, advantages_M, fresh, step_model=m) for m in ("adam", "sgd"))
    assert torch.equal(adam.policy_M, sgd.policy_M)
    assert torch.equal(adam.objective_M, sgd.objective_M)
    assert not torch.equal(predicted_changes(hidden_MH, tokens_M, advantages_M, head).policy_M, sgd.policy_M)


@pytest.mark.parametrize(
    "settings", [{"top_k": 5}, {"least_probability": 0.03}, {"top_k": 5, "least_probability": 0.1}]
)
def test_a_truncated_vocabulary_is_a_smaller_one(settings):
    """The same as with an output matrix that has only the rows looked at."""
    hidden_MH, tokens_M, advantages_M, head = random_tokens(5)
    got = predicted_changes(hidden_MH, tokens_M, advantages_M, head, **settings)
    for i in range(len(tokens_M)):
        pi_V = (head.weight_VH @ hidden_MH[i]).softmax(-1)
        is_seen_V = pi_V >= settings.get("least_probability", 0)
        is_seen_V &= pi_V >= pi_V.topk(settings.get("top_k", len(pi_V))).values[-1]
        is_seen_V[tokens_M[i]] = True
        fewer = replace(
            head,
            weight_VH=head.weight_VH[is_seen_V],
            first_VH=head.first_VH[is_seen_V],
            second_VH=head.second_VH[is_seen_V],
        )
        place = is_seen_V[: tokens_M[i]].sum()[None]
        expected = predicted_changes(hidden_MH[i : i + 1], place, advantages_M[i : i + 1], fewer)
        torch.testing.assert_close(got.policy_M[i], expected.policy_M[0], rtol=1e-9, atol=1e-15)
        torch.testing.assert_close(got.objective_M[i], expected.objective_M[0], rtol=1e-9, atol=1e-15)
    whole, all_of_it = (
        predicted_changes(hidden_MH, tokens_M, advantages_M, head, top_k=k) for k in (None, len(head.weight_VH))
    )
    assert torch.equal(whole.policy_M, all_of_it.policy_M)


def test_infinite_thresholds_keep_every_token_and_nothing_is_written_to_the_moments():
    given = random_tokens(6)
    head = given[3]
    before = [tensor.clone() for tensor in (head.weight_VH, head.first_VH, head.second_VH)]
    for window in ("symmetric", "one_sided"):
        factors = CAPO(**INFINITE, window=window, least_gain=-math.inf).factors(record_of(*given))
        assert (factors.values_NT == 1).all()
        assert factors.metrics["rejected"] == 0
        assert not factors.values_NT.requires_grad
    for tensor, expected in zip((head.weight_VH, head.first_VH, head.second_VH), before, strict=True):
        assert torch.equal(tensor, expected)


@pytest.mark.parametrize("window", ["symmetric", "one_sided"])
def test_the_kept_set_shrinks_as_the_thresholds_fall(window):
    given = random_tokens(7, tokens=300)
    changes = predicted_changes(*given)
    for name, values_M in (("tau_policy", changes.policy_M), ("tau_objective", changes.objective_M.abs())):
        kept, shares = torch.ones(300, 1, dtype=torch.bool), []
        for tau in (math.inf, *(values_M.quantile(q).item() for q in (0.9, 0.7, 0.5, 0.3, 0.1)), 0.0):
            factors = CAPO(**INFINITE | {name: tau}, window=window, least_probability=0.0).factors(record_of(*given))
            assert set(factors.values_NT.unique().tolist()) <= {0.0, 1.0}
            now = factors.values_NT == 1
            assert not (now & ~kept).any()
            assert factors.metrics["rejected"].item() == pytest.approx(1 - now.double().mean().item())
            kept, shares = now, [*shares, now.double().mean().item()]
        assert shares[0] > 0.4
        assert shares[-1] < 0.05
        assert len(set(shares)) >= 6


def test_windows_by_name():
    given = random_tokens(8, tokens=300)
    changes = predicted_changes(*given)
    symmetric = CAPO(math.inf, 0.02, least_probability=0.0).factors(record_of(*given))
    one_sided = CAPO(math.inf, 0.02, "one_sided", 0.001, least_probability=0.0).factors(record_of(*given))
    assert torch.equal(symmetric.values_NT[:, 0] == 1, changes.objective_M.abs() <= 0.02)
    kept_M = (changes.objective_M >= 0.001) & (changes.objective_M <= 0.02)
    assert torch.equal(one_sided.values_NT[:, 0] == 1, kept_M)
    low, high = (one_sided.metrics[f"rejected_objective_{side}"].item() for side in ("low", "high"))
    assert low == pytest.approx((changes.objective_M < 0.001).double().mean().item())
    assert low + high == pytest.approx(one_sided.metrics["rejected"].item())
    assert one_sided.metrics["objective_change"].item() == pytest.approx(changes.objective_M.mean().item())


def test_the_papers_denominator_keeps_the_sum_of_a_rollouts_factors():
    record = record_of(*random_tokens(9, tokens=120), columns=4)
    mask_NT = record.mask_NT.clone()
    mask_NT[::3, 2:] = False
    record = replace(record, mask_NT=mask_NT)
    plain, kept = (CAPO(1e-3, 0.03, denominator=name).factors(record) for name in ("all", "kept"))
    assert torch.equal((plain.values_NT == 0), (kept.values_NT == 0))
    sums_N, kept_N = (kept.values_NT * mask_NT).sum(1), (plain.values_NT * mask_NT).sum(1)
    assert 0 < (kept_N == 0).sum() < len(kept_N)
    torch.testing.assert_close(sums_N[kept_N > 0], mask_NT.sum(1)[kept_N > 0].double())
    assert (plain.values_NT[~mask_NT] == 1).all()
    assert (kept.values_NT[~mask_NT] == 1).all()


def test_bad_input_and_nothing_at_all():
    given = random_tokens(10, tokens=3)
    record = record_of(*given)
    for missing, message in (("hidden_NTH", "trainer"), ("head", "optimiser")):
        with pytest.raises(InvalidInputError, match=message):
            CAPO().factors(replace(record, **{missing: None}))
    empty = CAPO().factors(replace(record, mask_NT=torch.zeros(3, 1)))
    assert (empty.values_NT == 1).all()
    assert all(value == 0 for value in empty.metrics.values())
    for settings in (
        {"window": "upper"},
        {"step_model": "adamw"},
        {"denominator": "tokens"},
        {"tau_policy": -1.0},
        {"tau_objective": math.nan},
        {"least_probability": 1.0},
        {"top_k": 0},
    ):
        with pytest.raises(ConfigError, match="capo"):
            CAPO(**settings)


def test_defaults_are_those_of_the_release():
    assert (CAPO().tau_policy, CAPO().tau_objective) == (1e-4, 1e-2)
    assert (CAPO().window, CAPO().step_model) == ("symmetric", "adam")
