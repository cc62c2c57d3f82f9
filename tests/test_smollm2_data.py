"""benchmarks/smollm2_*.py on models of seconds: what a shared beginning must not change; the commands end to end."""

import json
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("trl")
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import smollm2_data
import smollm2_gradients
import smollm2_learning
from allotment.audit import read_log
from allotment.lab.hugging_face import model_folder, rows
from smollm2_generation import draw, sampled

torch.set_num_threads(1)
ROLLOUTS, MOST = 12, 9


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(model_folder()).eval()


@pytest.fixture(scope="module")
def prompts():
    """A beginning, and prompts of unequal lengths; their first completion token is free."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder())
    texts = [row["prompt"] for row in rows("pool")[::150]]
    return tokenizer("2 + 3=5 ").input_ids, tokenizer(texts).input_ids, torch.tensor([tokenizer.eos_token_id])


def test_every_token_is_drawn_from_what_the_model_says_after_its_own_text(model, prompts):
    beginning, further, stop = prompts
    seen = {}

    def keep(step):
        numbers = (step.rows_M.tolist(), step.rollouts_M.tolist(), step.tokens_M.tolist())
        for row, own, token, logits in zip(*numbers, step.logits_MV, strict=True):
            seen.setdefault((row, own), []).append((token, logits))

    generator = torch.Generator().manual_seed(0)
    drawn = draw(model, beginning, further, ROLLOUTS, MOST, stop, generator, on_tokens=keep)
    assert len(set(map(len, further))) > 1
    assert len(seen) == len(further) * ROLLOUTS
    for (row, own), steps in seen.items():
        tokens = [token for token, _ in steps]
        written = drawn.tokens_BRT[row, own]
        assert written[: len(tokens)].tolist() == tokens
        assert (written[len(tokens) :] == -1).all()
        assert len(tokens) == MOST or tokens[-1] in stop
        assert not set(tokens[:-1]) & set(stop.tolist())
        whole = torch.tensor([[*beginning, *further[row], *tokens]])
        with torch.no_grad():
            alone = model(whole).logits[0, -len(tokens) - 1 : -1]
        torch.testing.assert_close(torch.stack([logits for _, logits in steps]), alone, atol=2e-4, rtol=1e-4)


def test_what_the_pass_over_a_prompt_shows_is_that_of_a_plain_pass(model, prompts):
    beginning, further, stop = prompts
    drawn = draw(model, beginning, further, 1, 1, stop, torch.Generator().manual_seed(0), layers=(1, 2))
    for row, prompt in enumerate(further):
        tokens = torch.tensor([[*beginning, *prompt]])
        with torch.no_grad():
            plain = model(tokens, output_hidden_states=True)
        log_probs = plain.logits[0, len(beginning) : -1].log_softmax(-1)
        expected = log_probs.gather(1, torch.tensor(prompt[1:])[:, None]).mean()
        first = plain.logits[0, -1].softmax(-1)
        torch.testing.assert_close(drawn.log_probability_B[row], expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(drawn.entropy_B[row], torch.special.entr(first).sum(), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(drawn.largest_B[row], first.max(), atol=1e-4, rtol=1e-4)
        hidden = torch.stack([plain.hidden_states[layer][0, -1] for layer in (1, 2)])
        torch.testing.assert_close(drawn.hidden_BLH[row], hidden, atol=1e-3, rtol=1e-3)


def test_tokens_have_the_probabilities_of_their_logits():
    logits = torch.tensor([0.0, -torch.inf, 2.0, 1.0, -3.0])
    drawn = sampled(logits.expand(40_000, -1), torch.Generator().manual_seed(1))
    found, expected = torch.bincount(drawn, minlength=5) / len(drawn), logits.softmax(-1)
    assert found[1] == 0
    assert ((found - expected).abs() <= 5 * (expected * (1 - expected) / len(drawn)).sqrt()).all()


def test_a_rollout_that_was_cut_off_has_no_completion(model, prompts):
    beginning, further, stop = prompts
    drawn = draw(model, beginning, further[:1], 4, 2, stop, torch.Generator().manual_seed(0))
    assert drawn.completions(0, stop) == [None] * 4
    assert drawn.completions(0, drawn.tokens_BRT[0, :, 1].unique()) == drawn.tokens_BRT[0, :, :1].tolist()


def test_reduced_states_keep_distances_in_the_mean():
    states = np.random.default_rng(0).normal(size=(60, 2, 64)) * np.linspace(0.01, 100, 64)
    unit = (states - states.mean(0)) / states.std(0)
    found = smollm2_data.reduced(states).reshape(60, 2, -1)
    for layer in range(2):
        before, after = (np.square(x[:30, layer] - x[30:, layer]).sum(1) for x in (unit, found))
        assert np.mean(after / before) * unit.shape[2] == pytest.approx(1, abs=0.1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of random weights that reads bytes: the format of SmolLM2, none of its knowledge."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    path = tmp_path_factory.mktemp("model")
    letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    plain = Tokenizer(models.BPE(vocab={**letters, "<|im_end|>": len(letters)}, merges=[]))
    plain.pre_tokenizer, plain.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<|im_end|>", pad_token="<|im_end|>")
    tokenizer.save_pretrained(path)
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(letters) + 1, **shape)).save_pretrained(path)
    return path


def run_data(monkeypatch, *arguments, main=smollm2_data.main):
    monkeypatch.setattr(sys, "argv", ["benchmark", *map(str, arguments)])
    main()


def test_a_killed_run_goes_on_and_ends_with_the_same_files(folder, tmp_path, monkeypatch, capsys):
    levels = ["chain_sum-2x1", "gcd-10"]
    short = ["--prompts", 3, "--levels", *levels]
    run_data(monkeypatch, folder, tmp_path / "once", *short, "--write", tmp_path / "once" / "whole")
    assert "all | 6" in capsys.readouterr().out
    run_data(monkeypatch, folder, tmp_path / "again", *short)
    (tmp_path / "again" / "gcd-10.safetensors").unlink()
    kept = (tmp_path / "again" / "chain_sum-2x1.safetensors").stat().st_mtime_ns
    run_data(monkeypatch, folder, tmp_path / "again", *short, "--write", tmp_path / "again" / "whole")
    assert (tmp_path / "again" / "chain_sum-2x1.safetensors").stat().st_mtime_ns == kept
    for name in ("counts.jsonl", "prompts.safetensors"):
        first, second = ((tmp_path / run / "whole" / name).read_bytes() for run in ("once", "again"))
        assert first == second
    log = read_log(tmp_path / "once" / "whole" / "counts.jsonl")
    assert len(log.ids) == 6
    assert (log.trials == 8).all()
    assert log.texts is not None


def test_only_right_answers_that_ended_are_successes(folder):
    policy = smollm2_data.Policy(folder, dtype="float32")
    questions = smollm2_data.Questions.of_all([smollm2_data.LEVELS[0]], 2)[0]
    answers = [str(entry["answer"]) for entry in questions.entries]
    texts = [[f" {answer}\n", f" {answer}", " 77\n", "\n"] for answer in answers]
    tokens = [[policy.tokens([text])[0] for text in row] for row in texts]
    most = max(len(one) for row in tokens for one in row)
    padded = torch.tensor([[one + [-1] * (most - len(one)) for one in row] for row in tokens])
    nothing = torch.zeros(2)
    drawn = smollm2_data.Drawn(padded, torch.zeros(2, 1, 1), nothing, nothing, nothing)
    assert policy.rewards(questions, range(2), drawn).tolist() == [[1.0, 0.0, 0.0, 0.0]] * 2


def test_scores_without_a_backward_pass_are_those_with_one(folder):
    policy = smollm2_data.Policy(folder, dtype="float32")
    model = policy.model
    torch.nn.init.normal_(model.model.norm.weight, 1.0, 0.3)
    questions = smollm2_data.Questions.of_all([smollm2_data.LEVELS[0]], 2)[0]
    kept = smollm2_gradients.Scores(model, 2, 3)
    drawn = policy.draw(questions, range(2), 3, 0, on_tokens=kept.add)
    kept.close()
    matrices = {"last-layer": model.lm_head.weight, "last-block": model.model.layers[-1].mlp.down_proj.weight}
    for row, asked in enumerate(policy.tokens(questions.asked())):
        before = [*policy.tokens([questions.beginning])[0], *asked]
        for own, written in enumerate(drawn.tokens_BRT[row]):
            tokens = written[written >= 0]
            log_probs = (
                model(torch.tensor([[*before, *tokens.tolist()]])).logits[0, len(before) - 1 : -1].log_softmax(-1)
            )
            gradients = torch.autograd.grad(log_probs.gather(1, tokens[:, None]).sum(), list(matrices.values()))
            for name, gradient in zip(matrices, gradients, strict=True):
                at = kept.directions[name]
                expected = torch.einsum("ko,oi,ki->k", at.outputs_KO, gradient, at.inputs_KI)
                torch.testing.assert_close(kept.scores[name][row, own], expected, atol=1e-3, rtol=1e-3)


def test_gradients_end_to_end(folder, tmp_path, monkeypatch, capsys):
    short = ["--prompts", 20, "--rollouts", 4, "--levels", "chain_sum-2x1", "--steps", 4]
    run_data(monkeypatch, folder, tmp_path, *short, "--only-draw", main=smollm2_gradients.main)
    piece = smollm2_gradients.load_state(tmp_path / "chain_sum-2x1.safetensors", kind=smollm2_gradients.KIND)
    assert piece["rewards"].shape == (20, 4)
    assert piece["last-block"].shape == (20, 4, smollm2_gradients.SKETCHES)
    assert (np.abs(piece["last-layer"]).sum(2) > 0).all()
    belief = "first visit, siblings"
    run_data(monkeypatch, folder, tmp_path, *short, "--beliefs", belief, main=smollm2_gradients.main)
    said = capsys.readouterr().out
    assert said.count("| none | uniform 16 x 8, RLOO |") == len(smollm2_gradients.MATRICES)
    for design in smollm2_gradients.DESIGNS:
        assert said.count(f"| {belief} | {design} |") == len(smollm2_gradients.MATRICES)


def test_the_chance_of_an_answer_is_the_product_of_its_tokens(folder):
    tokenizer = smollm2_learning.tokenizer_of(folder)
    model = LlamaForCausalLM.from_pretrained(folder).eval()
    rows_ = smollm2_learning.problems(tokenizer, 9, 1)[0]
    assert len({len(row["prompt"]) for row in rows_}) > 1
    for row, chance in zip(rows_, smollm2_learning.chances(model, tokenizer, rows_), strict=True):
        tokens, expected = tokenizer.encode(row["prompt"]), 1.0
        for token in row["right"]:
            with torch.no_grad():
                expected *= float(model(torch.tensor([tokens])).logits[0, -1].softmax(-1)[token])
            tokens.append(token)
        assert chance == pytest.approx(expected, rel=1e-3)


def test_learning_goes_on_after_a_kill_and_prints_its_table(folder, tmp_path, monkeypatch, capsys):
    short = ["--prompts", 2, "--rollouts", 3, "--pool", 12, "--held-out", 4, "--judged", 4, "--blocks", 1, "--rank", 2]
    short += ["--seeds", 0, "--save-steps", 1, "--arms", "uniform", "vip"]
    learn = smollm2_learning.main
    run_data(monkeypatch, folder, tmp_path, *short, "--steps", 1, main=learn)
    for file in tmp_path.glob("*.json"):
        file.unlink()
    run_data(monkeypatch, folder, tmp_path, *short, "--steps", 2, main=learn)
    for arm in ("uniform", "vip"):
        figures = json.loads((tmp_path / f"{arm}-s0.json").read_text())
        assert figures["steps"] == 2
        assert figures["budget"] == 12
        assert 0 < figures["pool"][1] < 1
    assert "| vip | 2 | 12 |" in capsys.readouterr().out


def test_no_question_stands_twice_or_among_the_examples():
    levels = [level for level in smollm2_data.LEVELS if level.dataset in ("chain_sum", "letter_counting")]
    every = smollm2_data.Questions.of_all(levels, 10)
    texts = [entry["question"] for part in every for entry in (*part.entries, *part.examples)]
    assert len(texts) == len(set(texts)) == len(levels) * 14


def test_the_file_in_the_repository_is_what_the_levels_make():
    folder = smollm2_data.SHIPPED
    lines = [json.loads(line) for line in (folder / "counts.jsonl").read_text().splitlines()]
    every = smollm2_data.Questions.of_all(smollm2_data.LEVELS, smollm2_data.PROMPTS)
    made = [(f"{part.level.name}/{row}", entry["question"]) for part in every for row, entry in enumerate(part.entries)]
    assert [(line["prompt_id"], line["prompt"]) for line in lines] == made
    assert len(read_log(folder / "counts.jsonl").ids) == len(made) >= 500
