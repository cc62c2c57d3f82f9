"""Log formats by name: the table's own, and one of another package."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from allotment.audit import Log, find_sources, read_log
from allotment.audit.formats.base import LogFormat
from allotment.cli.main import main
from allotment.errors import ConfigError, InvalidInputError
from allotment.registry import LOG_FORMATS

DOCS = Path(__file__).parents[2] / "docs" / "logs.md"


def read_toy(source, success_above):
    rows = [json.loads(line) for line in source.path.read_text().splitlines()]
    numbers = [np.array([row["toy"][i] for row in rows]) for i in (0, 1)]
    visits = np.arange(len(rows))
    return Log(tuple(range(len(rows))), visits, np.ones_like(visits), *numbers, notes=("a toy",))


@pytest.fixture
def toy():
    summary, recognises = "toy: [successes, rollouts]", lambda first: first.has("toy")
    LOG_FORMATS.register("toy", LogFormat(summary, recognises, read_toy, file_is_run=True))
    yield
    LOG_FORMATS.unregister("toy")


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps({"toy": [k, 8]}) + "\n" for k in (0, 3, 5, 8)))
    return path


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize("name", ["toy", "auto"])
def test_a_format_of_another_package_is_audited(capsys, log, name):
    assert main(["audit", str(log), "--format", name, "--predictor", "last-value", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["prompts"], found["visits"], found["budget_per_prompt"]) == (4, 4, 8)
    assert found["notes"][0] == "a toy"
    assert [source.format for source in find_sources(log.parent)] == ["toy"]


@pytest.mark.usefixtures("toy")
def test_a_format_of_another_package_is_named_in_texts(capsys, tmp_path):
    with pytest.raises(SystemExit):
        main(["audit", "--help"])
    assert f"or {', '.join(LOG_FORMATS.names)}" in " ".join(re.findall(r"[\w,:;()-]+", capsys.readouterr().out))
    (tmp_path / "other.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(InvalidInputError, match=r"toy: \[successes, rollouts\] \(toy\)"):
        read_log(tmp_path / "other.jsonl")


def test_after_the_other_package_has_gone(log):
    with pytest.raises(InvalidInputError, match="unknown format"):
        read_log(log)
    with pytest.raises(ConfigError, match="unknown log format"):
        read_log(log, "toy")


def test_an_unknown_name_is_refused_with_the_names(capsys, log):
    assert main(["audit", str(log), "--format", "nonsense"]) == 2
    said = capsys.readouterr().err
    assert "nonsense" in said
    assert ", ".join(LOG_FORMATS.names) in said


def test_every_format_is_in_the_docs():
    table = DOCS.read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w-]+)` \|", table, flags=re.MULTILINE)
    assert sorted(rows) == sorted(LOG_FORMATS.names)


def test_the_audit_loads_neither_the_bench_nor_the_command_line():
    ties = ["lab", "config", "cli", "report", "integrations", "trainers"]
    code = f"""
import sys, allotment.audit
from allotment.registry import LOG_FORMATS
list(LOG_FORMATS)
print([name for name in {ties} if f"allotment.{{name}}" in sys.modules])
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
