import numpy as np
import torch

from allotment.lab.generation import Rollouts, seeded_generator


def some_problems(mixture, count):
    return [mixture.pool[i] for i in np.linspace(0, len(mixture.pool) - 1, count).astype(int)]


def test_a_prompt_does_not_see_its_batch(mixture, scratchpad):
    """Padding and neighbours change nothing: log-probabilities alone equal those in a batch of other lengths."""
    problems = some_problems(mixture, 6)
    rollouts = scratchpad.rollouts(problems, np.full(6, 3), seeded_generator(1))
    with torch.no_grad():
        together = scratchpad.log_probs(problems, rollouts.group_N, rollouts.tokens_NT, rollouts.mask_NT)
        for n, g in enumerate(rollouts.group_N.tolist()):
            row = slice(n, n + 1)
            alone = scratchpad.log_probs(
                [problems[g]], torch.tensor([0]), rollouts.tokens_NT[row], rollouts.mask_NT[row]
            )
            torch.testing.assert_close(alone, together[row], atol=2e-5, rtol=1e-5)


def test_cached_sampling_draws_from_the_same_distribution_as_scoring(mixture, short):
    """The frequency of the greedy first token over many rollouts fits its scored probability."""
    problem, n = mixture.pool[100], 4000
    rollouts = short.rollouts([problem], np.array([n]), seeded_generator(2))
    text, count = max(
        ((t, c) for t, c in zip(*np.unique(rollouts.tokens_NT[:, 0], return_counts=True), strict=True)),
        key=lambda pair: pair[1],
    )
    row = torch.tensor([[int(text)]])
    with torch.no_grad():
        p = short.log_probs([problem], torch.tensor([0]), row, torch.ones(1, 1, dtype=torch.bool)).exp().item()
    assert abs(count / n - p) < 4 * np.sqrt(p * (1 - p) / n)


def test_success_probability_is_what_sampling_gives(mixture, shipped_labs):
    problems, n = some_problems(mixture, 20), 400
    for lab in shipped_labs.values():
        p = lab.success_probability(problems, scratchpads=64)
        rollouts = lab.rollouts(problems, np.full(20, n), seeded_generator(3))
        observed = np.bincount(rollouts.group_N, rollouts.rewards_N) / n
        # 4.5 standard errors, plus the noise of the 64 scratchpads
        assert np.all(np.abs(observed - p) < 4.5 * np.sqrt(p * (1 - p) / n + 1e-5) + 0.03 * (lab.regime.scratchpad > 0))


def test_the_short_regime_is_exact(mixture, short):
    """The probabilities of all answers of one digit and the end, by enumeration, contain the reference answer's."""
    problem = next(p for p in mixture.pool if len(p.answer) == 1)
    digits = [short.tokenizer.encode_answer(d) for d in "0123456789"]
    with torch.no_grad():
        tokens = torch.tensor(digits)
        log_p = short.log_probs(
            [problem], torch.zeros(10, dtype=torch.long), tokens, torch.ones_like(tokens, dtype=torch.bool)
        )
    expected = log_p.sum(1).exp()[int(problem.answer)].item()
    assert np.isclose(short.success_probability([problem])[0], expected, rtol=1e-5)


def test_ragged_counts_and_prompts_left_out(mixture, scratchpad):
    problems = some_problems(mixture, 4)
    rollouts = scratchpad.rollouts(problems, np.array([5, 0, 1, 2]), seeded_generator(4))
    assert np.bincount(rollouts.group_N, minlength=4).tolist() == [5, 0, 1, 2]
    assert rollouts.rewards_N.shape == (8,)


def test_sampling_is_a_function_of_the_generator(mixture, scratchpad):
    problems = some_problems(mixture, 4)
    first, second, other = (scratchpad.rollouts(problems, np.full(4, 4), seeded_generator(s)) for s in (5, 5, 6))
    assert torch.equal(first.tokens_NT, second.tokens_NT)
    assert not torch.equal(first.tokens_NT, other.tokens_NT)


def test_rewards_follow_the_verifier_and_the_form(mixture, scratchpad):
    regime = scratchpad.regime
    assert regime.answer_of("abcde=42") == "42"
    assert regime.answer_of("abcd=42") is None
    assert regime.answer_of("42") is None
    assert len(regime.target("7", np.random.default_rng(0))) == 7


def test_concatenation_keeps_every_rollout(mixture, scratchpad):
    problems = some_problems(mixture, 3)
    parts = [
        scratchpad.rollouts(problems, np.array(c), seeded_generator(7, i)) for i, c in enumerate([[1, 2, 0], [0, 1, 3]])
    ]
    whole = Rollouts.concatenate(parts)
    assert np.bincount(whole.group_N).tolist() == [1, 3, 3]
    assert whole.n_tokens == sum(p.n_tokens for p in parts)
