"""Logs as a run leaves them: what is read of a file that grows or was cut short, and what reading it loads."""

import json
import subprocess
import sys

import pytest

from allotment.run_logs.files import append_rows, lines, read_log, whole_lines


def test_a_last_line_without_its_newline_is_not_read(tmp_path):
    path = tmp_path / "log.jsonl"
    append_rows(path, [{"step": 1}, {"step": 2, "text": "é"}])
    whole = path.read_bytes()
    for cut in range(1, 12):  # also in the middle of a character
        path.write_bytes(whole[:-cut])
        assert read_log(path) == [{"step": 1}]
    path.write_bytes(whole)
    assert read_log(path) == [{"step": 1}, {"step": 2, "text": "é"}]
    assert read_log(tmp_path / "missing.jsonl") == []


@pytest.mark.parametrize("damage", [b"\n", b"{\n", b"\xff\n"])
def test_a_damaged_whole_line_is_an_error(tmp_path, damage):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"{}\n" + damage)
    with pytest.raises((json.JSONDecodeError, UnicodeDecodeError)):
        read_log(path)


def test_reading_goes_on_where_it_ended(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"a\nbc")
    assert list(whole_lines(path)) == [b"a\n"]
    path.write_bytes(b"a\nbcd\ne\n")
    assert list(whole_lines(path, 2)) == [b"bcd\n", b"e\n"]


def test_of_a_line_that_is_too_long_only_the_beginning_is_given(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"a" * 10 + b"\nbb\n" + b"c" * 10)
    assert list(lines(path, longest=4)) == [b"aaaa", b"bb\n", b"cccc"]


def test_a_rollout_log_loads_neither_the_configuration_nor_the_command_line():
    heavy = {"pydantic", "tyro", "torch", "allotment.tasks", "allotment.config"}
    code = f"import sys, allotment.run_logs.rollout_log; print({heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
