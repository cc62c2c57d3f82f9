import json
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from lab_runs import run

from allotment.cli.main import main
from allotment.errors import ConfigError, InvalidInputError, StateError
from allotment.lab.checkpoint import load_lab
from allotment.lab.config import TrainConfig
from allotment.lab.demonstrations import as_rollouts, written_demonstrations
from allotment.lab.generation import Lab, seeded_generator
from allotment.lab.ml_irl import MaximumLikelihoodIRL
from allotment.lab.train import Trainer
from allotment.methods.objectives.ml_irl import reward_loss, squared_rewards
from allotment.run_logs.files import read_log
from allotment.tasks.countdown import mixture_of
from allotment.tasks.mixture import Mixture


@pytest.fixture(scope="module")
def drawn(small, shipped_labs):
    """The pool, and three rollouts of each of its prompts in the scratchpad regime."""
    problems = list(small.pool)
    counts_Q = np.full(len(problems), 3)
    return problems, shipped_labs["scratchpad"].rollouts(problems, counts_Q, seeded_generator(0))


@pytest.fixture
def judge(small):
    return MaximumLikelihoodIRL(load_lab("scratchpad"), small)


def learnt(judge, drawn, steps=30):
    """The judge, after some steps on the same rollouts."""
    for _ in range(steps):
        judge.learn(*drawn)
    return judge


def parameters(judge):
    return torch.cat([p.detach().flatten() for p in judge.reward.parameters()])


@pytest.mark.parametrize("regime", ["scratchpad", "short", "countdown"])
def test_demonstrations_are_right_completions_as_a_rollout_would_have_them(regime):
    lab, problems = load_lab(regime), mixture_of(regime).pool[::26]
    written = written_demonstrations(lab, problems, 1.0, 3)
    assert [prompt for prompt, _ in written] == [problem.id for problem in problems]
    rollouts = as_rollouts(lab, problems, written)
    assert rollouts.group_N.tolist() == list(range(len(problems)))
    for (_, text), tokens, mask in zip(written, rollouts.tokens_NT, rollouts.mask_NT, strict=True):
        assert tokens[mask].tolist() == lab.tokenizer.encode_answer(text)
        assert (tokens[~mask] == lab.tokenizer.pad).all()
    if regime != "countdown":
        assert list(rollouts.answers_N) == [problem.answer for problem in problems]
    else:
        assert (rollouts.rewards_N == 1).all()


def test_a_smaller_share_is_of_some_of_the_same_demonstrations(scratchpad, small):
    every, quarter, one = (written_demonstrations(scratchpad, small.pool, share, 5) for share in (1.0, 0.25, 1e-9))
    assert [len(every), len(quarter)] == [len(small.pool), round(len(small.pool) / 4)]
    assert len(one) == 1
    assert set(one) < set(quarter) < set(every)
    assert set(written_demonstrations(scratchpad, small.pool, 0.25, 6)) != set(quarter)


@pytest.mark.parametrize(
    ("demonstration", "said"),
    [
        (("gcd-20/no", "abcde=4"), "of a prompt that is not trained on"),
        (("own", ""), "is empty"),
        (("own", "abcd\n=4"), "tokens outside the vocabulary"),
        (("own", "abcde=" + 20 * "1"), "longer than a rollout can be"),
        (("own", "abcde=999"), "is not right"),
        (("own", "4"), "is not right"),
        (("own", 4), "another form"),
        (("own",), "another form"),
        ("own", "another form"),
    ],
)
def test_a_demonstration_that_is_not_of_the_task_is_refused(scratchpad, small, demonstration, said):
    own = small.pool[0]
    if isinstance(demonstration, tuple) and demonstration[0] == "own":
        demonstration = (own.id, *demonstration[1:])
    right = (own.id, "abcde=" + own.answer)
    assert as_rollouts(scratchpad, small.pool, [right]).rewards_N == 1
    with pytest.raises(InvalidInputError, match=said):
        MaximumLikelihoodIRL(scratchpad, small, demonstrations=[right, demonstration])


def test_no_demonstrations_are_refused(scratchpad, small):
    with pytest.raises(InvalidInputError, match="there are no demonstrations"):
        MaximumLikelihoodIRL(scratchpad, small, demonstrations=[])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"share": 0.0}, "this share"),
        ({"share": 1.5}, "this share"),
        ({"share": 0.5, "demonstrations": [("a", "b")]}, "of demonstrations that are given"),
        ({"beta": -1.0}, "this beta, learning_rate or penalty"),
        ({"learning_rate": float("inf")}, "this beta, learning_rate or penalty"),
        ({"penalty": float("nan")}, "this beta, learning_rate or penalty"),
        ({"pooling": "first"}, "this pooling"),
    ],
)
def test_settings_that_cannot_be_are_refused(scratchpad, small, settings, said):
    with pytest.raises(ConfigError, match=said):
        MaximumLikelihoodIRL(scratchpad, small, **settings)


def test_before_the_first_step_all_rewards_are_zero_and_the_policy_is_left_alone(judge, drawn):
    judged = judge.judge(*drawn)
    np.testing.assert_allclose(judged.rewards_N, 0, atol=1e-6)
    assert (judged.successes_N == 1).all()


def test_rewards_are_the_networks_less_beta_times_the_log_ratio_to_the_policy_of_the_start(small, drawn, shipped_labs):
    lab, start = load_lab("scratchpad"), shipped_labs["scratchpad"]
    judge = learnt(MaximumLikelihoodIRL(lab, small, beta=0.7), drawn)
    with torch.no_grad():
        lab.policy.head.weight.mul_(1.2)
    problems, rollouts = drawn
    given = (problems, rollouts.group_N, rollouts.tokens_NT, rollouts.mask_NT)
    with torch.no_grad():
        ratios_N = (lab.log_probs(*given) - start.log_probs(*given)).sum(1)
        states_NLH = start.representations(problems, rollouts, "mean")
        normal_NLH = (states_NLH - states_NLH.mean(-1, keepdim=True)) / states_NLH.std(-1, keepdim=True, correction=0)
        rewards_N = judge.reward(normal_NLH.flatten(1))
    assert ratios_N.abs().max() > 0.1
    assert rewards_N.std() > 0.01
    wanted_N = rewards_N - 0.7 * ratios_N
    np.testing.assert_allclose(judge.judge(problems, rollouts).rewards_N, wanted_N, atol=1e-4)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_the_trained_policy_cannot_move_what_the_reward_is_computed_from(small, drawn, pooling):
    lab = load_lab("scratchpad")
    judge = MaximumLikelihoodIRL(lab, small, pooling=pooling)
    before_NF = judge.features(*drawn)
    torch.testing.assert_close(before_NF[:, :64].mean(1), torch.zeros(len(before_NF)), atol=1e-5, rtol=0)
    with torch.no_grad():
        for parameter in lab.policy.parameters():
            parameter.mul_(1.5)
    assert torch.equal(judge.features(*drawn), before_NF)


def test_success_is_a_reward_within_half_the_gap_of_the_prompts_own_demonstration(small, drawn):
    """Or of all demonstrations, where a prompt has none."""
    problems, rollouts = drawn
    lab = load_lab("scratchpad")
    judge = learnt(MaximumLikelihoodIRL(lab, small, share=0.5, learning_rate=1e-2), drawn)
    judge._gap = 0.3
    written = dict(written_demonstrations(lab, small.pool, 0.5, 0))
    shown = [problem for problem in problems if problem.id in written]
    expert = as_rollouts(lab, shown, [(problem.id, written[problem.id]) for problem in shown])
    of_expert = dict(zip([p.id for p in shown], judge.rewards(shown, expert).tolist(), strict=True))
    every = np.mean(list(of_expert.values()))
    assert 0 < len(shown) < len(problems)
    thresholds = np.array([of_expert.get(problem.id, every) - 0.15 for problem in problems])[rollouts.group_N]
    rewards_N = judge.rewards(problems, rollouts).numpy()
    clear_N = abs(rewards_N - thresholds) > 1e-5
    successes_N = judge.judge(problems, rollouts).successes_N
    assert (successes_N == (rewards_N > thresholds))[clear_N].all()
    assert set(successes_N) == {0.0, 1.0}


def test_one_reward_step_by_hand(small, drawn):
    """Adam with decay on the loss of the prompts that have demonstrations, from parameters that are not 0."""
    problems, rollouts = drawn
    lab = load_lab("scratchpad")
    judge = MaximumLikelihoodIRL(lab, small, share=0.5, learning_rate=1e-2, penalty=0.3)
    judge.learn(*drawn)
    network, before = deepcopy(judge.reward), judge._gap
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2, weight_decay=1e-3)
    optimizer.load_state_dict(deepcopy(judge._optimizer.state_dict()))
    written = written_demonstrations(lab, small.pool, 0.5, 0)
    shown = torch.tensor([problem.id in dict(written) for problem in problems])
    kept = rollouts.take(shown[rollouts.group_N])
    expert = as_rollouts(lab, small.pool, written)
    sides = network(judge.features(problems, kept)), kept.group_N
    sides = *sides, network(judge.features(small.pool, expert)), expert.group_N
    loss = reward_loss(*sides)
    optimizer.zero_grad()
    (loss + 0.15 * squared_rewards(*sides)).backward()
    optimizer.step()
    row = judge.learn(problems, rollouts)
    assert row["reward_gap"] == pytest.approx(-loss.item(), abs=1e-6)
    assert row["demonstrated"] == shown.double().mean()
    assert row["reward_clamped"] == 0
    assert judge._gap == pytest.approx(0.9 * before - 0.1 * loss.item())
    torch.testing.assert_close(parameters(judge), torch.cat([p.detach().flatten() for p in network.parameters()]))


def test_the_reward_learns_to_tell_rollouts_from_demonstrations(judge, drawn):
    gaps = [judge.learn(*drawn)["reward_gap"] for _ in range(60)]
    assert gaps[0] == 0
    assert gaps[-1] > 0.05


def test_rollouts_that_are_the_demonstrations_teach_nothing(small, scratchpad):
    judge = MaximumLikelihoodIRL(scratchpad, small)
    expert = as_rollouts(scratchpad, small.pool, written_demonstrations(scratchpad, small.pool, 1.0, 0))
    with torch.no_grad():
        judge.reward.layers[-1].weight.fill_(0.1)
    order = torch.arange(len(expert)).flip(0)
    flipped = replace(expert, group_N=expert.group_N[order], tokens_NT=expert.tokens_NT[order])
    flipped = replace(flipped, mask_NT=expert.mask_NT[order])
    judge.penalty = 0.0
    row = judge.learn(list(small.pool), flipped)
    gradients = torch.cat([p.grad.flatten() for p in judge.reward.parameters()])
    assert abs(row["reward_gap"]) < 1e-5
    assert gradients.abs().max() < 1e-5
    judge.learn(list(small.pool), replace(flipped, tokens_NT=flipped.tokens_NT.roll(1, 0)))
    assert torch.cat([p.grad.flatten() for p in judge.reward.parameters()]).abs().max() > 1e-2


def test_prompts_without_demonstrations_are_judged_and_teach_nothing(small, drawn):
    problems, rollouts = drawn
    own = problems[0]
    judge = MaximumLikelihoodIRL(load_lab("scratchpad"), small, demonstrations=[(own.id, "abcde=" + own.answer)])
    before = parameters(judge)
    others = rollouts.take(rollouts.group_N > 0)
    assert judge.learn(problems, others) == {"demonstrated": 0.0, "reward_gap": 0.0, "reward_clamped": 0.0}
    assert torch.equal(parameters(judge), before)
    assert judge.learn(problems, rollouts)["demonstrated"] == pytest.approx(1 / len(problems))
    assert not torch.equal(parameters(judge), before)
    assert len(judge.judge(problems, others).rewards_N) == len(others)


def test_several_demonstrations_of_a_prompt_count_as_one(small, drawn):
    """A prompt's weight does not depend on how many it has."""
    written = written_demonstrations(load_lab("scratchpad"), small.pool, 1.0, 0)
    once, often = (
        MaximumLikelihoodIRL(load_lab("scratchpad"), small, demonstrations=given)
        for given in (written, [*written, *written[:1] * 5])
    )
    for each in (once, often):
        each.learn(*drawn)
    torch.testing.assert_close(parameters(once), parameters(often), atol=1e-5, rtol=1e-3)


def test_a_learning_rate_of_zero_freezes_the_reward(small, drawn, judge):
    state = learnt(judge, drawn, 5).state_dict()
    frozen = MaximumLikelihoodIRL(load_lab("scratchpad"), small, learning_rate=0.0)
    frozen.load_state_dict(state)
    before = parameters(frozen)
    assert frozen.learn(*drawn)["reward_gap"] != 0
    assert torch.equal(parameters(frozen), before)


def test_a_restored_judge_goes_on_with_the_same_bits(small, drawn):
    first, other = (MaximumLikelihoodIRL(load_lab("scratchpad"), small) for _ in range(2))
    learnt(first, drawn, 3)
    other.load_state_dict(first.state_dict())
    for each in (first, other):
        each.learn(*drawn)
    assert torch.equal(parameters(first), parameters(other))
    assert other._gap == first._gap
    with pytest.raises(StateError, match="another kind"):
        other.load_state_dict({"kind": "RepresentationReward"})


def test_states_that_are_not_finite_are_refused(small):
    lab = load_lab("scratchpad")
    with torch.no_grad():
        lab.policy.blocks[1].up.weight.fill_(torch.inf)
    with pytest.raises(InvalidInputError, match="not finite"):
        MaximumLikelihoodIRL(lab, small).judge(list(small.pool), as_rollouts(lab, small.pool, [right(small)]))


def right(small):
    return small.pool[0].id, "abcde=" + small.pool[0].answer


def config(irl=None, **changes):
    settings = {"steps": 5, "prompts_per_step": 8, "evaluate_every": 5, "checkpoint_every": 2, "planner": "uniform"}
    table = {"ml-irl": irl} if irl else {}
    return TrainConfig(**{**settings, "objective": ("ml-irl",), "objective_settings": table, **changes})


@pytest.mark.parametrize("planner", ["uniform", "vip"])
def test_a_killed_run_resumes_to_the_same_bytes(tmp_path, small, planner):
    settings = config({"share": 0.5, "learning_rate": 1e-2}, planner=planner, learning_rate=1e-3)
    run(tmp_path / "whole", settings, small)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", settings, small, stop_after=3)
    rows, _ = run(tmp_path / "killed", settings, small)
    for name in ("metrics.jsonl", "rollouts.jsonl", "checkpoint.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes(), name
    assert rows[1]["success"] == 1
    assert any(row["success"] != row["verified_success"] for row in rows[2:])
    assert any(row["reward_gap"] for row in rows[2:])
    assert {row["demonstrated"] for row in rows[1:]} != {1.0}


def test_the_policy_follows_the_reward_and_not_the_verifier(small):
    """It moves where the reward says so, though to the verifier all rollouts are alike; and not where all are equal."""
    ends = []
    for scale in (1, 0):
        trainer = Trainer(config(learning_rate=1e-3), load_lab("scratchpad"), small)
        with torch.no_grad():
            weights = torch.randn(1, 64, generator=torch.Generator().manual_seed(0))
            trainer.judge.reward.layers[-1].weight.copy_(scale * weights)
        trainer.lab.rollouts = _without_verifier(trainer.lab)
        row = trainer.step(1)[0]
        ends.append((row["gradient_norm"], row["verified_success"]))
    assert ends[0][0] > 0.01
    assert ends[1][0] < 1e-4
    assert ends[0][1] == ends[1][1] == 0


def _without_verifier(lab):
    def rollouts(*given):
        drawn = Lab.rollouts(lab, *given)
        return replace(drawn, rewards_N=np.zeros(len(drawn)))

    return rollouts


def test_a_habit_that_is_demonstrated_is_learnt(mixture):
    """Demonstrations whose scratchpad is all vowels: after some steps rollouts have more of them."""
    few = Mixture(mixture.pool[::100], mixture.held_out[:2], ())
    random = np.random.default_rng(0)
    written = [(p.id, "".join(random.choice(list("aeiou"), 5)) + "=" + p.answer) for p in few.pool]
    settings = config({"demonstrations": written, "beta": 0.05}, learning_rate=1e-3, steps=40)
    trainer = Trainer(settings, load_lab("scratchpad"), few)
    shares = []
    for step in range(1, 41):
        trainer.step(step)
        if step in (1, 40):
            drawn = trainer.lab.rollouts(few.pool, np.full(len(few.pool), 60), seeded_generator(1))
            texts = [trainer.lab.tokenizer.decode(row)[:5] for row in drawn.tokens_NT.tolist()]
            shares.append(np.mean([character in "aeiou" for text in texts for character in text]))
    assert shares[0] < 0.25
    assert shares[1] > shares[0] + 0.1


@pytest.mark.parametrize("planner", ["uniform", "vip"])
def test_the_command_line_trains_with_it(tmp_path, planner):
    words = ["--steps", "2", "--prompts-per-step", "4", "--evaluate-every", "2", "--regime", "short"]
    words += [
        "--objective",
        "ml-irl",
        "--objective-settings",
        json.dumps({"ml-irl": {"pooling": "last", "share": 0.5}}),
    ]
    assert main(["train", "--planner", planner, *words, "--out", str(tmp_path / "run")]) == 0
    rows = read_log(tmp_path / "run" / "metrics.jsonl")
    assert {"judged_reward", "verified_success", "reward_gap", "demonstrated"} < set(rows[1])


def test_a_wrong_demonstration_is_an_error_on_the_command_line(tmp_path, capsys):
    table = json.dumps({"ml-irl": {"demonstrations": [["gcd-20/1", "a wrong answer"]]}})
    words = ["train", "--planner", "uniform", "--objective", "ml-irl", "--objective-settings", table]
    assert main([*words, "--out", str(tmp_path / "run")]) != 0
    assert "demonstration" in capsys.readouterr().err
