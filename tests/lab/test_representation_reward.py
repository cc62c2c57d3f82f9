import json
from collections import Counter
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from lab_runs import run
from torch.nn.functional import pad

from allotment.cli.main import main
from allotment.errors import ConfigError, InvalidInputError, StateError
from allotment.lab.checkpoint import load_lab
from allotment.lab.config import TrainConfig
from allotment.lab.generation import seeded_generator
from allotment.lab.representation_reward import (
    Labelled,
    RepresentationReward,
    balanced,
    fitted_probe,
    labelled_pairs,
    labelled_rollouts,
)
from allotment.lab.train import Trainer
from allotment.methods.objectives.representation import auc, auc_within
from allotment.run_logs.files import read_log


@pytest.fixture(scope="module")
def drawn(mixture, shipped_labs):
    """Prompts of several lengths and rollouts of both policies."""
    problems = list(mixture.pool[::40])
    return problems, {
        name: lab.rollouts(problems, np.full(len(problems), 3), seeded_generator(0))
        for name, lab in shipped_labs.items()
    }


def by_hand(lab, problem, tokens):
    """[T, layers, H]: outputs of the blocks when prompt and completion are run as one unpadded row."""
    seen, prompt = [], [lab.tokenizer.encode_prompt(problem.question)]
    cache = lab.policy.encode_prompts(prompt)
    hooks = [b.register_forward_hook(lambda _, given, made: seen.append(made[0][0])) for b in lab.policy.blocks]
    lab.policy.prompt_states(prompt)
    lab.policy.hidden(cache, torch.tensor([[lab.tokenizer.answer, *tokens]]))
    for hook in hooks:
        hook.remove()
    layers = len(lab.policy.blocks)
    return torch.stack([torch.cat([seen[i], seen[layers + i]]) for i in range(layers)], dim=1).detach()


@pytest.mark.parametrize("regime", ["scratchpad", "short"])
def test_representations_are_the_blocks_outputs_of_the_unpadded_row(shipped_labs, drawn, regime):
    lab, problems, rollouts = shipped_labs[regime], drawn[0], drawn[1][regime]
    last_NLH, mean_NLH = (lab.representations(problems, rollouts, pooling) for pooling in ("last", "mean"))
    assert len(set(rollouts.mask_NT.sum(1).tolist())) > 2
    for row in range(len(rollouts)):
        tokens = rollouts.tokens_NT[row][rollouts.mask_NT[row]].tolist()
        states_TLH = by_hand(lab, problems[rollouts.group_N[row]], tokens)
        torch.testing.assert_close(last_NLH[row], states_TLH[-1], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(mean_NLH[row], states_TLH.mean(0), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("regime", ["scratchpad", "short"])
def test_choices_are_derivatives_of_the_log_probability_by_gains_on_the_hidden_states(shipped_labs, drawn, regime):
    lab, problems, rollouts = shipped_labs[regime], drawn[0], drawn[1][regime]
    choice_NLH = lab.representations(problems, rollouts, "choice")
    weight_VH = lab.policy.head.weight.detach()
    for row in range(len(rollouts)):
        tokens = rollouts.tokens_NT[row][rollouts.mask_NT[row]]
        states_TLH = by_hand(lab, problems[rollouts.group_N[row]], tokens.tolist())[-len(tokens) - 1 : -1]
        for layer in range(len(lab.policy.blocks)):
            gain_H = torch.ones(weight_VH.shape[1], requires_grad=True)
            log_probs_TV = (gain_H * lab.policy.norm(states_TLH[:, layer]).detach() @ weight_VH.T).log_softmax(-1)
            log_prob = log_probs_TV.gather(1, tokens[:, None]).sum()
            if layer == len(lab.policy.blocks) - 1:
                assert log_prob.item() == pytest.approx(rollouts.log_probs_NT[row].sum().item(), abs=1e-4)
            (expected_H,) = torch.autograd.grad(log_prob, gain_H)
            torch.testing.assert_close(choice_NLH[row, layer], expected_H, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("pooling", ["last", "mean", "choice"])
def test_what_stands_in_padding_does_not_matter(shipped_labs, drawn, pooling):
    lab, problems, rollouts = shipped_labs["short"], drawn[0], drawn[1]["short"]
    garbage = torch.where(rollouts.mask_NT, rollouts.tokens_NT, 5)
    longer = replace(rollouts, tokens_NT=pad(garbage, (0, 3), value=7), mask_NT=pad(rollouts.mask_NT, (0, 3)))
    one, other = (lab.representations(problems, each, pooling) for each in (rollouts, longer))
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    alone = lab.representations([problems[0]], rollouts.of_prompt(0), pooling)
    torch.testing.assert_close(alone, one[rollouts.group_N == 0], atol=1e-4, rtol=1e-4)


def labelled(rights, layers=2, width=3):
    """Rollouts of prompts 0, 1, ... with these labels; the states of rollout i are all i."""
    right_N = np.concatenate(rights).astype(float)
    states_NLH = torch.arange(len(right_N)).float()[:, None, None].expand(-1, layers, width)
    return Labelled(states_NLH, right_N, np.repeat(np.arange(len(rights)), [len(r) for r in rights]))


@pytest.mark.parametrize("compare", ["prompt", "any"])
def test_pairs_are_of_a_right_and_a_wrong_rollout_and_each_stands_in_one(compare):
    drawn = labelled([[1, 0, 1, 1], [0, 0, 0], [1, 1], [0, 1, 0, 1, 0]])
    rows_P2 = torch.stack([states[:, 0, 0].long() for states in labelled_pairs(drawn, compare, 100, 0)], dim=1).numpy()
    assert (drawn.right_N[rows_P2] == [1, 0]).all()
    assert len(np.unique(rows_P2)) == rows_P2.size
    own = drawn.prompt_N[rows_P2[:, 0]] == drawn.prompt_N[rows_P2[:, 1]]
    assert own.all() == (compare == "prompt")
    assert len(rows_P2) == {"prompt": 1 + 2, "any": 7}[compare]
    pairs = {name: labelled_pairs(drawn, name, 2, 0) for name in ("prompt", "any")}
    for both, within, between in zip(labelled_pairs(drawn, "both", 4, 0), pairs["prompt"], pairs["any"], strict=True):
        assert torch.equal(both, torch.cat([within, between]))
    fewer, again = (labelled_pairs(drawn, compare, 2, seed)[0] for seed in (0, 0))
    assert len(fewer) == 2
    assert torch.equal(fewer, again)


def test_labelled_prompts_are_balanced_over_levels(mixture):
    warm_start = mixture.warm_start
    sizes, chosen = Counter(p.level for p in warm_start), Counter(p.level for p in balanced(warm_start, 400, 0))
    assert sum(chosen.values()) == 400
    for level, size in sizes.items():
        assert max(chosen.values()) - 1 <= chosen[level] or chosen[level] == size
    ids = [[p.id for p in balanced(warm_start, 400, seed)] for seed in (0, 0, 1)]
    assert ids[0] == ids[1] != ids[2]
    assert len(set(ids[0])) == 400


def test_labels_are_the_verifiers_and_states_the_policys(shipped_labs, mixture):
    lab, problems = shipped_labs["short"], list(mixture.warm_start[::80])
    drawn = labelled_rollouts(lab, problems, 3, "mean", 5)
    assert drawn.prompt_N.tolist() == np.repeat(np.arange(len(problems)), 3).tolist()
    first = lab.rollouts(problems[:256], np.full(256, 3), seeded_generator(5, 8, 0))
    assert drawn.right_N[:768].tolist() == first.rewards_N.tolist()
    torch.testing.assert_close(drawn.states_NLH[:768], lab.representations(problems[:256], first, "mean"))


@pytest.fixture(scope="module")
def labelling(small, mixture):
    """A small mixture, and prompts to label."""
    return replace(small, warm_start=mixture.warm_start[::100])


QUICK = {"prompts": 120, "rollouts": 4, "epochs": 3}


@pytest.fixture(scope="module")
def fitted(labelling, shipped_labs):
    """Do not train it."""
    return RepresentationReward(shipped_labs["short"], labelling, **QUICK)


def test_rewards_are_the_centred_sigmoid_of_the_shifted_score_and_success_its_sign(fitted, shipped_labs, drawn):
    problems, rollouts = drawn[0], drawn[1]["short"]
    states_NLH = shipped_labs["short"].representations(problems, rollouts, "choice")
    scores_N = fitted.probe(states_NLH).detach().double().numpy() - fitted.shift
    judged = fitted.judge(problems, rollouts)
    np.testing.assert_allclose(judged.rewards_N, 1 / (1 + np.exp(-scores_N)) - 0.5, atol=1e-6)
    assert judged.successes_N.tolist() == (judged.rewards_N > 0).astype(float).tolist()
    assert len(set(judged.successes_N)) == 2


def test_as_many_rollouts_held_out_score_above_zero_as_are_right(shipped_labs, mixture):
    drawn = labelled_rollouts(shipped_labs["short"], balanced(mixture.warm_start, 200, 0), 8, "last", 0)
    settings = {"compare": "any", "pairs": 400, "epochs": 5, "learning_rate": 1e-3}
    probe, shift = fitted_probe(drawn, **settings, seed=0)
    held_out_N = np.isin(drawn.prompt_N, np.random.default_rng([0, 10]).permutation(200)[:20])
    with torch.no_grad():
        scores_N, right_N = probe(drawn.states_NLH).numpy()[held_out_N], drawn.right_N[held_out_N]
    assert len(scores_N) == 160
    above, at_least = (int(above_N.sum()) for above_N in (scores_N > shift, scores_N >= shift))  # equal answers tie
    assert above - 1 <= right_N.sum() <= at_least + 1
    assert at_least - above < 16
    assert auc(scores_N, right_N) > 0.7


def test_choices_tell_the_rollouts_of_a_new_prompt_apart_and_those_of_two(shipped_labs, mixture):
    drawn = labelled_rollouts(shipped_labs["short"], balanced(mixture.warm_start, 600, 0), 8, "choice", 0)
    fitted_N = drawn.prompt_N < 400
    probe, _ = fitted_probe(drawn.take(fitted_N), "both", 800, 15, 1e-3, 0)
    new = drawn.take(~fitted_N)
    with torch.no_grad():
        scores_N = probe(new.states_NLH).numpy()
    assert auc(scores_N, new.right_N) > 0.75
    assert auc_within(scores_N, new.right_N, new.prompt_N) > 0.62


def test_the_states_scored_are_the_current_policys_or_those_of_the_start(labelling, drawn):
    problems, rollouts = drawn[0], drawn[1]["short"]
    lab = load_lab("short")
    judges = [RepresentationReward(lab, labelling, states=states, **QUICK) for states in ("current", "start")]
    before = [judge.scores(problems, rollouts) for judge in judges]
    torch.testing.assert_close(*before)
    with torch.no_grad():
        lab.policy.blocks[0].up.weight.mul_(1.5)
    current, start = (judge.scores(problems, rollouts) for judge in judges)
    assert (current - before[0]).abs().max() > 1e-3
    assert torch.equal(start, before[1])
    assert all(p.grad is None for p in lab.policy.parameters())


def test_the_co_loss_confirms_the_probes_own_ranking(labelling, drawn):
    problems, rollouts = drawn[0], drawn[1]["short"]
    judge = RepresentationReward(load_lab("short"), labelling, co_loss=True, **QUICK)
    rows = [judge.learn(problems, rollouts) for _ in range(3)]
    assert rows[0]["probe_gap"] < rows[1]["probe_gap"] < rows[2]["probe_gap"]
    assert rows[0]["probe_loss"] > rows[1]["probe_loss"] > rows[2]["probe_loss"]
    alone = rollouts.take(torch.arange(len(rollouts)) % 3 == 0)
    assert judge.learn(problems, alone) == {"probe_loss": 0.0, "probe_gap": 0.0}


def test_without_the_co_loss_the_probe_stays(fitted, drawn):
    before = fitted.probe.weight_LH.clone()
    assert fitted.learn(drawn[0], drawn[1]["short"]) == {}
    assert torch.equal(fitted.probe.weight_LH, before)


def test_a_restored_judge_goes_on_with_the_same_bits(labelling, drawn):
    problems, rollouts = drawn[0], drawn[1]["short"]
    first, other = (
        RepresentationReward(load_lab("short"), labelling, co_loss=True, seed=seed, **QUICK) for seed in (0, 1)
    )
    first.learn(problems, rollouts)
    other.load_state_dict(first.state_dict())
    for judge in (first, other):
        judge.learn(problems, rollouts)
    assert torch.equal(first.scores(problems, rollouts), other.scores(problems, rollouts))
    with pytest.raises(StateError, match="another kind"):
        other.load_state_dict({"kind": "MaximumLikelihoodIRL"})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pooling": "first"}, "cannot have this pooling"),
        ({"compare": "level"}, "cannot have this compare"),
        ({"states": "old"}, "cannot have this states"),
        ({"rollouts": 1}, "cannot have these settings"),
        ({"fit_pairs": 1}, "cannot have these settings"),
        ({"epochs": 0}, "cannot have these settings"),
        ({"learning_rate": float("inf")}, "cannot have these settings"),
        ({"prompts": 10_000}, "labelled prompts that are not trained on"),
        ({"prompts": 1}, "labelled prompts that are not trained on"),
    ],
)
def test_settings_that_cannot_be_are_refused(shipped_labs, labelling, changes, said):
    with pytest.raises(ConfigError, match=said):
        RepresentationReward(shipped_labs["short"], labelling, **{**QUICK, **changes})


def test_a_mixture_without_prompts_to_label_is_refused(shipped_labs, small):
    with pytest.raises(ConfigError, match="0 in the mixture's warm_start"):
        RepresentationReward(shipped_labs["short"], small)


def test_one_sided_prompts_are_refused(shipped_labs, labelling):
    with torch.no_grad():
        chances = shipped_labs["short"].success_probability(labelling.warm_start)
    sure = [p for p, chance in zip(labelling.warm_start, chances, strict=True) if chance > 0.9999]
    assert len(sure) > 5
    with pytest.raises(ConfigError, match="one-sided"):
        RepresentationReward(shipped_labs["short"], replace(labelling, warm_start=tuple(sure)), prompts=len(sure))


def test_states_that_are_not_finite_are_refused(labelling, drawn):
    lab = load_lab("short")
    judge = RepresentationReward(lab, labelling, states="current", **QUICK)
    with torch.no_grad():
        lab.policy.blocks[1].up.weight.fill_(torch.inf)
    with pytest.raises(InvalidInputError, match="not finite"):
        judge.judge(drawn[0], drawn[1]["short"])


def config(representation, **changes):
    settings = {"steps": 4, "prompts_per_step": 8, "evaluate_every": 4, "checkpoint_every": 2, "planner": "uniform"}
    table = {"representation-reward": {**QUICK, **representation}}
    changes = {"regime": "short", "objective": ("representation-reward",), "objective_settings": table, **changes}
    return TrainConfig(**{**settings, **changes})


@pytest.mark.parametrize("planner", ["uniform", "vip"])
@pytest.mark.parametrize("representation", [{"co_loss": True}, {"states": "start", "train": "policy-gradient"}])
def test_a_killed_run_resumes_to_the_same_bytes(tmp_path, labelling, planner, representation):
    settings = config(representation, planner=planner, steps=5)
    run(tmp_path / "whole", settings, labelling)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", settings, labelling, stop_after=3)
    rows, _ = run(tmp_path / "killed", settings, labelling)
    for name in ("metrics.jsonl", "rollouts.jsonl", "checkpoint.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes(), name
    assert all(0 <= row["verified_success"] <= 1 and abs(row["judged_reward"]) < 0.5 for row in rows[1:])
    assert any(row["verified_success"] != row["success"] for row in rows[1:])
    assert all(("probe_gap" in row) == ("co_loss" in representation) for row in rows[1:])


def test_a_resumed_run_does_not_depend_on_what_is_labelled_anew(tmp_path, labelling):
    """The fit is repeated when the run is taken up, and what it gives is overwritten."""
    settings = config({"co_loss": True}, steps=5)
    whole = run(tmp_path / "whole", settings, labelling)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", settings, labelling, stop_after=3)
    other = replace(labelling, warm_start=labelling.warm_start[::-1])
    killed = run(tmp_path / "killed", settings, other)
    assert whole[0] == killed[0]
    assert torch.equal(whole[1], killed[1])


def test_preferences_are_of_the_best_and_the_worst_by_the_probe(labelling):
    """One step by hand: extreme pairs, confidence from the mean gap of rewards, conservative DPO."""
    trainer = Trainer(config({}, steps=1), load_lab("short"), labelling)
    before = deepcopy(trainer.lab)
    row = trainer.step(1)[0]
    problems = trainer.batch(1)
    rollouts = before.rollouts(problems, np.full(8, 8), seeded_generator(0, 1, 0))
    judge = RepresentationReward(before, labelling, **QUICK)
    rewards_N = torch.from_numpy(judge.judge(problems, rollouts).rewards_N)
    gaps = [(r.max() - r.min()).item() for r in (rewards_N[rollouts.group_N == q] for q in range(8))]
    pairs = [gap for gap in gaps if gap > 0]
    confidence = max(1 / (1 + np.exp(-7.5 * np.mean(pairs))), 0.5)
    assert row["pairs"] == len(pairs)
    assert row["confidence"] == pytest.approx(confidence, abs=1e-4)
    assert row["loss"] == pytest.approx(np.log(2) * len(pairs) / 8, abs=1e-4)  # the policy is the reference
    assert row["gradient_norm"] > 0


@pytest.mark.parametrize(
    ("planner", "settings"),
    [("uniform", {"compare": "any", "pooling": "mean", "fit_pairs": 400}), ("vip", {"co_loss": True})],
)
def test_the_command_line_and_its_resume_to_the_same_bytes(tmp_path, planner, settings):
    table = json.dumps({"representation-reward": {**QUICK, **settings}})
    words = ["train", "--planner", planner, "--regime", "short", "--prompts-per-step", "4", "--evaluate-every", "3"]
    words += ["--objective", "representation-reward", "--objective-settings", table]
    whole, parts = (str(tmp_path / name) for name in ("whole", "parts"))
    assert main([*words, "--steps", "3", "--out", whole]) == 0
    assert main([*words, "--steps", "1", "--out", parts]) == 0
    assert main(["train", "--resume", "--out", parts, "--steps", "3"]) == 0
    rows = {name: read_log(tmp_path / name / "metrics.jsonl") for name in ("whole", "parts")}
    assert rows["whole"][0]["pool_success"] != rows["whole"][-1]["pool_success"]
    assert {"confidence", "judged_reward", "verified_success"} <= set(rows["whole"][1])
    assert rows["parts"][-2:] == rows["whole"][-2:]
    first, second = ((tmp_path / name / "checkpoint.safetensors").read_bytes() for name in ("whole", "parts"))
    assert first == second


def test_a_regime_without_prompts_to_label_is_an_error_on_the_command_line(tmp_path, capsys):
    words = ["train", "--regime", "countdown", "--planner", "uniform", "--objective", "representation-reward"]
    assert main([*words, "--out", str(tmp_path / "run")]) != 0
    assert "countdown has none" in capsys.readouterr().err
