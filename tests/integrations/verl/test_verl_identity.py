"""Which prompt a row is: names, what stands in for a missing one, and two prompts of one name."""

import json

import numpy as np
import pytest
from verl_cases import KEYS

from allotment.errors import InvalidInputError
from allotment.integrations.verl import book as book_module
from allotment.integrations.verl.book import PromptBook
from allotment.integrations.verl.prompts import prompt_key


def row(text: str, *, index: object = None, answer: str = "2", source: str = "sums", image: object = None) -> dict:
    content = text if image is None else [{"type": "image", "image": image}, {"type": "text", "text": text}]
    return {
        "raw_prompt": [{"role": "user", "content": content}],
        "data_source": source,
        "reward_model": {"style": "rule", "ground_truth": answer},
        "extra_info": {} if index is None else {"index": index},
    }


def test_keys_stay_from_fetch_to_fetch() -> None:
    assert prompt_key(row("1 + 1", index=7)) == "sums/7"
    assert prompt_key({**row("1 + 1"), "extra_info": {"index": 7, "name": "one"}}, "name") == "sums/one"
    assert prompt_key(row("1 + 1", index=7, source=None)) == "/7"


@pytest.mark.parametrize("index", [7, 7.0, np.int64(7), np.float32(7), np.array(7)])
def test_a_number_is_a_name_however_it_is_stored(index) -> None:
    """A column with gaps is one of floats in pandas."""
    assert prompt_key(row("1 + 1", index=index)) == "sums/7"


@pytest.mark.parametrize(
    "info", [{}, None, {"split": "train"}, {"index": float("nan")}, {"index": np.nan}, {"index": ""}, "train", "[1]", 3]
)
def test_without_a_name_a_prompt_is_what_it_holds(info) -> None:
    own = [{**row(text, answer=answer), "extra_info": info} for text in ("1 + 1", "1 + 2") for answer in ("2", "10")]
    keys = [prompt_key(entry) for entry in own]
    assert len(set(keys)) == 4
    assert keys == [prompt_key(json.loads(json.dumps(entry))) for entry in own]


@pytest.mark.parametrize("name", ["tools_kwargs", "interaction_kwargs"])
def test_one_text_in_two_environments_is_two_prompts(name) -> None:
    """The text says "play the game"; which one is in what verl hands to the agent loop."""
    both = [{**row("play", index=index), "extra_info": {"index": index, name: {"game": {"seed": seed}}}}
            for index, seed in ((None, 1), (None, 2), (3, 1), (3, 2))]  # fmt: skip
    keys, book = [prompt_key(entry) for entry in both], PromptBook()
    assert keys[0] != keys[1]
    assert keys[2] == keys[3] == "sums/3"
    book.check(keys[:3], both[:3])
    with pytest.raises(InvalidInputError, match=r"play / user / 2 / 1'[\s\S]*play / user / 2 / 2'"):
        book.check(keys[3:], both[3:])


def in_arrays(value):
    """As pandas reads a parquet file."""
    if isinstance(value, list):
        whole = np.empty(len(value), dtype=object)
        whole[:] = [in_arrays(entry) for entry in value]
        return whole
    return {name: in_arrays(entry) for name, entry in value.items()} if isinstance(value, dict) else value


def test_lists_may_be_arrays_of_objects() -> None:
    """Their own bytes are addresses, new at each visit."""
    plain = [{**row(text), "reward_model": {"ground_truth": [text, "2"]}} for text in ("1 + 1", "1 + 2")]
    assert [prompt_key(in_arrays(entry)) for entry in plain] == [prompt_key(entry) for entry in plain]
    assert prompt_key({**plain[0], "extra_info": np.array({"index": 5}, dtype=object)}) == "sums/5"
    book = PromptBook()
    book.check(["sums/1", "sums/1"], [plain[0], in_arrays(plain[0])])
    with pytest.raises(InvalidInputError, match=r"1 \+ 2"):
        book.check(["sums/1"], [in_arrays(plain[1])])


def test_long_prompts_of_one_template_are_shown_by_both_ends() -> None:
    book, rows = PromptBook(), [row("Solve. " * 100 + end, index=1) for end in ("1 + 1", "9 - 1")]
    with pytest.raises(InvalidInputError, match=r"1 \+ 1[\s\S]*9 - 1"):
        book.check(["sums/1", "sums/1"], rows)


def test_extra_info_may_be_a_text_that_holds_a_table() -> None:
    assert prompt_key({**row("1 + 1"), "extra_info": '{"index": 12, "split": "train"}'}) == "sums/12"


@pytest.mark.parametrize("index", [[1], {"a": 1}, True, 1.5])
def test_what_names_nothing_is_refused(index) -> None:
    with pytest.raises(InvalidInputError, match=r"allotment\.prompt_id"):
        prompt_key(row("1 + 1", index=index))


def test_images_tell_prompts_apart() -> None:
    images = [np.full((4, 4), value, dtype=np.uint8) for value in (0, 1)]
    keys = {prompt_key(row("how many?", image=image)) for image in images}
    assert len(keys) == 2


def test_a_prompt_that_no_hash_can_name_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"add extra_info\.index"):
        prompt_key(row("what?", image=object()))


def test_two_prompts_of_one_name_are_an_error_that_shows_both() -> None:
    """Two files of one data_source whose indices begin at 0."""
    book, rows = PromptBook(), [row(f"{q} + 1", index=q) for q in range(3)]
    keys = [prompt_key(entry) for entry in rows]
    book.check(keys, rows)
    book.check(keys[::-1], rows[::-1])
    for other in (row("9 - 1", index=1), row("1 + 1", index=1, answer="10")):
        with pytest.raises(InvalidInputError, match=r"'sums/1'") as error:
            book.check([*keys[:1], prompt_key(other)], [rows[0], other])
        for shown in ("1 + 1", " / ".join(["1 + 1"]), other["reward_model"]["ground_truth"], "data_source"):
            assert shown in str(error.value)
    book.check(["sums/9"], [row("9 + 9", index=9)])


def test_two_prompts_of_one_name_in_one_batch() -> None:
    book, both = PromptBook(), [row("1 + 1", index=1), row("9 - 1", index=1)]
    with pytest.raises(InvalidInputError, match=r"9 - 1") as error:
        book.check(["sums/1", "sums/1"], both)
    assert "1 + 1" in str(error.value)
    book.check(["sums/1"], both[1:])  # nothing was taken down


def test_images_that_a_transform_makes_anew_are_one_prompt() -> None:
    book = PromptBook()
    for value in (0, 1):
        book.check(["pictures/1"], [row("how many?", index=1, image=np.full((4, 4), value))])


def test_a_resumed_run_knows_its_prompts(monkeypatch) -> None:
    monkeypatch.setattr(book_module, "KEPT", 1)
    book, resumed = PromptBook(), PromptBook()
    rows = [row(key, index=q) for q, key in enumerate(KEYS)]
    book.check(KEYS, rows)
    resumed.load_state_dict(book.state_dict())
    resumed.check(KEYS, rows)
    for either in (book, resumed):
        with pytest.raises(InvalidInputError, match="seen before, and 'another / user / 2'"):
            either.check(KEYS[3:4], [row("another", index=3)])
