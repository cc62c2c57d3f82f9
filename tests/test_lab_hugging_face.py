import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("trl")
from transformers import AutoModelForCausalLM, AutoTokenizer

from allotment.lab.checkpoint import load_lab
from allotment.lab.hugging_face import SCRATCHPAD, model_folder, rows, scratchpad_reward, success_rate
from allotment.tasks.mixture import load_mixture

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(model_folder())


@pytest.fixture(scope="module")
def model():
    """Do not train it: it is shared by all tests."""
    return AutoModelForCausalLM.from_pretrained(model_folder())


@pytest.fixture(scope="module")
def lab_tokenizer():
    return load_lab("scratchpad").tokenizer


def test_the_folder_is_small_and_holds_no_pickle():
    files = {file.name: file.stat().st_size for file in model_folder().iterdir()}
    assert set(files) == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert sum(files.values()) < 1_000_000


@pytest.mark.parametrize("split", ["pool", "held_out", "warm_start"])
def test_every_prompt_has_the_labs_tokens_and_comes_back(tokenizer, lab_tokenizer, split):
    texts = [problem.question for problem in getattr(load_mixture(), split)]
    tokens = tokenizer([text + "<ans>" for text in texts]).input_ids
    assert tokens == [[*lab_tokenizer.encode_prompt(text), lab_tokenizer.answer] for text in texts]
    assert tokenizer.batch_decode(tokens) == [text + "<ans>" for text in texts]
    assert tokenizer.batch_decode(tokens, skip_special_tokens=True) == texts


@given(data=st.data())
def test_any_text_over_the_vocabulary_has_the_labs_tokens(tokenizer, lab_tokenizer, data):
    text = "".join(data.draw(st.lists(st.sampled_from(lab_tokenizer.vocabulary[3:]))))
    tokens = tokenizer(text).input_ids
    assert tokens == lab_tokenizer.encode_prompt(text)
    assert tokenizer.decode(tokens) == text


def test_special_tokens_are_the_labs(tokenizer, lab_tokenizer):
    assert tokenizer.pad_token_id == lab_tokenizer.pad
    assert tokenizer.convert_tokens_to_ids("<ans>") == lab_tokenizer.answer
    assert tokenizer.eos_token_id == lab_tokenizer.end
    assert len(tokenizer) == len(lab_tokenizer)


def test_a_character_outside_the_vocabulary_is_refused(tokenizer):
    with pytest.raises(Exception, match="Missing"):
        tokenizer("aß")


def test_left_padding_does_not_change_log_probabilities(model, tokenizer):
    prompts = [row["prompt"] + "abcde=1" for row in rows("pool")[::40]]
    together = tokenizer(prompts, return_tensors="pt", padding=True)
    assert (together.attention_mask == 0).any()
    with torch.no_grad():
        padded = model(**together).logits[:, -7:].log_softmax(-1)
        alone = [model(**tokenizer(text, return_tensors="pt")).logits[0, -7:].log_softmax(-1) for text in prompts]
    torch.testing.assert_close(padded, torch.stack(alone), atol=1e-4, rtol=1e-4)


def test_completions_have_the_form_of_the_regime(model, tokenizer):
    prompts = tokenizer([row["prompt"] for row in rows("pool")[::4]], return_tensors="pt", padding=True)
    torch.manual_seed(0)
    tokens = model.generate(**prompts, max_new_tokens=SCRATCHPAD.max_tokens)[:, prompts.input_ids.shape[1] :]
    texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
    formed = [SCRATCHPAD.answer_of(text) is not None and text[:5].isalpha() for text in texts]
    assert np.mean(formed) > 0.98
    assert (tokens == tokenizer.eos_token_id).any(1).float().mean() > 0.98
    assert len({text[:5] for text in texts}) > 0.9 * len(texts)


def test_rows_are_the_split_with_unique_ids():
    pool = rows("pool")
    assert [row["prompt_id"] for row in pool] == [problem.id for problem in load_mixture().pool]
    assert len({row["prompt_id"] for row in pool + rows("held_out")}) == len(pool) + len(rows("held_out"))


@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        ("abcde=12", 1.0),
        ("zzzzz=12", 1.0),
        ("abcde=12 ", 0.0),
        ("abcde=012", 0.0),
        ("abcde=1", 0.0),
        ("abcde12", 0.0),
        ("abcd=12", 0.0),
        ("abcdef=12", 0.0),
        ("12", 0.0),
        ("", 0.0),
    ],
)
def test_only_the_exact_answer_in_the_right_place_is_rewarded(completion, reward):
    assert scratchpad_reward([completion], answer=["12"], prompts=["?"], completion_ids=[[1]]) == [reward]


def test_each_completion_is_held_against_its_own_answer():
    assert scratchpad_reward(["abcde=1", "abcde=1"], ["1", "2"]) == [1.0, 0.0]
    with pytest.raises(ValueError, match="zip"):
        scratchpad_reward(["abcde=1"], ["1", "2"])


def test_the_warm_start_leaves_room_to_learn(model, tokenizer):
    """The lab's own policy succeeds at 0.52 of the pool."""
    assert 0.4 < success_rate(model, tokenizer, rows("pool"), rollouts=1) < 0.65
