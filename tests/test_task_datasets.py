"""Rows of data sets: what comes out of reasoning-gym and files, and what is refused."""

import csv
import json

import pytest
import reasoning_gym
from hypothesis import given
from hypothesis import strategies as st
from reasoning_gym.factory import DATASETS
from reasoning_gym.utils import SYSTEM_PROMPTS

from allotment.errors import ConfigError, DuplicatePromptError, InvalidInputError
from allotment.tasks.datasets import format_rows, load_rows, split_held_out
from allotment.tasks.entries import decode_entry, encode_entry
from allotment.tasks.rewards import extract

RECORDS = [
    {"prompt": "1 + 1 =", "answer": "2", "name": "a"},
    {"prompt": 'Say "é", or\nnot', "answer": "é", "name": "b"},
]
MESSAGES = [{"role": "user", "content": "1 + 1 ="}]


def write(path, records):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    elif path.suffix == ".json":
        path.write_text(json.dumps(records))
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(records[0]))
            writer.writeheader()
            writer.writerows(records)
    else:
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(records), path)
    return path


@pytest.fixture
def jsonl(tmp_path):
    return lambda *records: write(tmp_path / "data.jsonl", records)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path, suffix):
    path = write(tmp_path / f"data{suffix}", RECORDS)
    expected = [{"prompt": r["prompt"], "answer": r["answer"], "prompt_id": str(n)} for n, r in enumerate(RECORDS)]
    assert load_rows(path) == expected
    assert [row["prompt_id"] for row in load_rows(path, id_column="name")] == ["a", "b"]


def test_rows_as_verl_writes_them_are_read_by_dotted_names(tmp_path):
    record = {"prompt": MESSAGES, "reward_model": {"style": "rule", "ground_truth": "2"}, "extra_info": {"index": 7}}
    path = write(tmp_path / "train.parquet", [record])
    rows = load_rows(path, answer_column="reward_model.ground_truth", id_column="extra_info.index")
    assert rows == [{"prompt": MESSAGES, "answer": "2", "prompt_id": "7"}]


def test_answers_of_json_become_text_and_csv_keeps_its_spelling(tmp_path, jsonl):
    assert [
        row["answer"] for row in load_rows(jsonl({"prompt": "a", "answer": 2}, {"prompt": "b", "answer": 0.5}))
    ] == [
        "2",
        "0.5",
    ]
    (tmp_path / "a.csv").write_text("prompt,answer\na,01.50\nb,NA\n")
    assert [row["answer"] for row in load_rows(tmp_path / "a.csv")] == ["01.50", "NA"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"prompt": "a", "answer": "b"}\n{"prompt": "c", "ans', "line 2: not JSON, or cut short"),
        ("", "no rows"),
        ("\n\n", "no rows"),
        ("[1]\n", "line 1: not an object"),
        ('{"prompt": 7, "answer": "b"}', "row 0: not a prompt"),
        ('{"prompt": " ", "answer": "b"}', "row 0: not a prompt"),
        ('{"prompt": [], "answer": "b"}', "row 0: not a prompt"),
        ('{"prompt": [{"role": "user"}], "answer": "b"}', "row 0: not a prompt"),
        ('{"prompt": "a", "answer": null}', "row 0: the answer has the wrong type"),
        ('{"prompt": "a", "answer": true}', "row 0: the answer has the wrong type"),
        ('{"prompt": "a", "answer": "b"}\n{"prompt": [{"role": "user", "content": "c"}], "answer": "d"}', "two kinds"),
    ],
)
def test_damaged_rows_are_refused_with_their_place(tmp_path, text, said):
    (tmp_path / "data.jsonl").write_text(text)
    with pytest.raises(InvalidInputError, match=said):
        load_rows(tmp_path / "data.jsonl")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", b'{"prompt": "a"}', "not a list"),
        ("a.json", b'[{"prompt": "a", "answer": "b"}', "not JSON, or cut short"),
        ("a.csv", b"prompt,answer\na\n", "fewer values"),
        ("a.csv", b"prompt,answer\na,b,c\n", "more values"),
        ("a.csv", b'prompt,answer\n"a,b\n', "not CSV"),
        ("a.csv", b"prompt,answer\n\xff,b\n", "not text"),
        ("a.parquet", b"PAR1", "not Parquet, or cut short"),
    ],
)
def test_damaged_files_are_refused(tmp_path, name, content, said):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidInputError, match=said):
        load_rows(tmp_path / name)


def test_a_missing_column_shows_those_there_are(jsonl):
    with pytest.raises(ConfigError, match=r"no column 'answer'\n  got:     question, solution"):
        load_rows(jsonl({"question": "a", "solution": "b"}), prompt_column="question")


def test_no_such_file_and_no_such_kind(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_rows(tmp_path / "none.jsonl")
    with pytest.raises(ConfigError, match=r"\.jsonl, \.json, \.csv, \.parquet"):
        load_rows(tmp_path / "data.txt")


@pytest.mark.parametrize("other", [{"prompt": "b", "answer": "1"}, {"prompt": "a", "answer": "2"}])
def test_an_id_stands_for_one_prompt_and_answer(jsonl, other):
    first = {"prompt": "a", "answer": "1", "id": 3}
    assert len(load_rows(jsonl(first, first), id_column="id")) == 2
    with pytest.raises(DuplicatePromptError, match="'3'"):
        load_rows(jsonl(first, {**other, "id": 3}), id_column="id")
    with pytest.raises(InvalidInputError, match="the id has the wrong type"):
        load_rows(jsonl({**first, "id": 0.5}), id_column="id")


def test_reasoning_gym_rows_are_what_the_library_generates():
    rows = load_rows("reasoning-gym:chain_sum", size=5, seed=3, options={"min_terms": 2, "max_terms": 2})
    entries = list(reasoning_gym.create_dataset("chain_sum", size=5, seed=3, min_terms=2, max_terms=2))
    assert [row["prompt"] for row in rows] == [entry["question"] for entry in entries]
    assert [row["prompt_id"] for row in rows] == [f"chain_sum/{e['metadata']['source_index']}" for e in entries]
    assert [decode_entry(row["entry"]) for row in rows] == entries


@pytest.mark.parametrize(
    ("source", "settings", "said"),
    [
        ("reasoning-gym:chain_summ", {}, "such as chain_sum"),
        ("reasoning-gym:", {}, "no such task"),
        ("reasoning-gym:composite", {}, "composite takes no names"),
        ("reasoning-gym:chain_sum", {"options": {"terms": 2}}, "min_terms, max_terms"),
        ("reasoning-gym:chain_sum", {"options": {"min_terms": 0}}, "refuses these options"),
        ("reasoning-gym:chain_sum", {"size": 0}, "size of the data set"),
        ("data.jsonl", {"options": {"min_terms": 2}}, "takes no task options"),
    ],
)
def test_unusable_tasks_are_refused(source, settings, said):
    with pytest.raises((ConfigError, InvalidInputError), match=said):
        load_rows(source, **settings)


@pytest.mark.parametrize("name", sorted(set(DATASETS) - {"composite"}))
def test_every_task_comes_back_from_text_as_it_was(name):
    """Verifiers compare tuples and look up whole-number keys; plain JSON loses both."""
    entry = reasoning_gym.create_dataset(name, size=1, seed=1)[0]
    assert decode_entry(encode_entry(entry)) == entry


def test_rows_are_a_data_set_for_a_trainer():
    datasets = pytest.importorskip("datasets")
    rows = load_rows("reasoning-gym:rubiks_cube", size=2) + load_rows("reasoning-gym:arc_1d", size=2)
    assert datasets.Dataset.from_list(rows).to_list() == rows


@given(st.lists(st.integers(0, 12), min_size=1), st.data())
def test_held_out_prompts_stand_nowhere_else(prompts, data):
    rows = [{"prompt": f"p{p}", "answer": str(n), "prompt_id": str(n)} for n, p in enumerate(prompts)]
    count = data.draw(st.integers(0, len(set(prompts)) - 1))
    train, held_out = split_held_out(rows, count)
    assert len({row["prompt"] for row in held_out}) == count
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in held_out}
    assert sorted(train + held_out, key=rows.index) == rows
    assert train == [row for row in rows if row in train]
    again = split_held_out(rows[::-1], count)
    assert again == (train[::-1], held_out[::-1])


@pytest.mark.parametrize("count", [-1, 2, 3])
def test_something_is_left_to_train_on(count):
    rows = [{"prompt": "a"}, {"prompt": "b"}, {"prompt": "a"}]
    with pytest.raises(InvalidInputError, match="0 to 1"):
        split_held_out(rows, count)


def test_instructions_go_around_the_prompt():
    text, chat = [{"prompt": "1 + 1 =", "answer": "2"}], [{"prompt": MESSAGES, "answer": "2"}]
    assert format_rows(text, suffix="Short.")[0]["prompt"] == "1 + 1 =\nShort."
    assert format_rows(text, chat=True) == chat
    expected = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1 =\nShort."}]
    for rows in (text, chat):
        before = json.dumps(rows)
        formatted = format_rows(rows, system_prompt="Be brief.", suffix="Short.")
        assert formatted == [{"prompt": expected, "answer": "2"}]
        assert json.dumps(rows) == before
        with pytest.raises(ConfigError, match="own system message"):
            format_rows(formatted, system_prompt="Be long.")


def test_reasoning_gyms_system_prompts_are_known_by_name():
    row = format_rows([{"prompt": "a", "answer": "b"}], system_prompt="simple")[0]
    assert row["prompt"][0] == {"role": "system", "content": SYSTEM_PROMPTS["simple"]}


@pytest.mark.parametrize(
    ("rule", "completion", "answer"),
    [
        ("answer_tag", "<answer>1</answer> no, <answer> 2\n</answer>.", "2"),
        ("answer_tag", "<answer>1", None),
        ("last_line", "so\n 7 \n\n", "7"),
        ("last_line", " \n", None),
        ("last_number", "3 + 4 = 7.", "7"),
        ("last_number", "from 2 to -1,234.50!", "-1234.50"),
        ("last_number", "that is 10-4", "4"),
        ("last_number", "seven", None),
        ("boxed", r"\boxed{1} then \boxed{\frac{1}{2}} and \boxed{3", r"\frac{1}{2}"),
        ("boxed", r"\boxed{", None),
        ("whole", " 7 \n", "7"),
        ("whole", "", ""),
    ],
)
def test_where_the_answer_stands(rule, completion, answer):
    assert extract(completion, rule) == answer


def test_an_unknown_rule_is_refused():
    with pytest.raises(ConfigError, match="answer_tag, last_line, last_number, boxed, whole"):
        extract("7", "first_line")
