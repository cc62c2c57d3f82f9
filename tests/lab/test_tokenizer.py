import pytest

from allotment.errors import InvalidInputError
from allotment.lab.tokenizer import Tokenizer


def test_every_prompt_and_answer_survives_the_round_trip(mixture, scratchpad):
    tokenizer = scratchpad.tokenizer
    for problem in (*mixture.pool, *mixture.held_out):
        assert tokenizer.decode(tokenizer.encode_prompt(problem.question)) == problem.question
        assert tokenizer.decode(tokenizer.encode_answer(problem.answer)) == problem.answer


def test_template_phrases_are_one_token_and_answers_are_characters():
    tokenizer = Tokenizer.train(["Solve for x: 1 + 2", "Solve for y: 3 + 4"], "ab")
    assert [tokenizer.vocabulary[t] for t in tokenizer.encode_prompt("Solve for x: 3 + 1")] == [
        "Solve for ", "x", ": ", "3", " + ", "1",
    ]  # fmt: skip
    assert len(tokenizer.encode_answer("Solve for ")) == len("Solve for ") + 1


def test_decoding_stops_at_the_end_token():
    tokenizer = Tokenizer.train(["ab"])
    assert tokenizer.decode([*tokenizer.encode_answer("ab"), *tokenizer.encode_answer("a")]) == "ab"


def test_an_unknown_character_is_named():
    with pytest.raises(InvalidInputError, match="'ß' in 'aß'"):
        Tokenizer.train(["ab"]).encode_prompt("aß")
