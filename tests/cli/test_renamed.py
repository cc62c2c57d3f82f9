"""Words and files of earlier versions: they work as the present ones do, with a warning, or say what replaces them.

``earlier_run`` is two steps of a run that version 0.1 made before its flags were renamed: ``allotment train --planner
mopps --candidates 3 --lower 4 --upper 16 --objective dr-grpo --estimator dr_grpo`` and the flags in ``RUN``.
"""

import json
import shutil
from pathlib import Path

import pytest

from allotment.cli.main import main, parse
from allotment.cli.renamed import present_words
from allotment.lab.config import TrainConfig
from allotment.trainers.trl.config import TRLTrainConfig

EARLIER = Path(__file__).parent / "earlier_run"
RUN = "--seed 3 --regime short --prompts-per-step 4 --rollouts-per-prompt 8 --evaluate-every 2 --checkpoint-every 2"
TRL = ["--model", "m", "--dataset", "d.jsonl"]


@pytest.mark.parametrize(
    ("earlier", "present"),
    [
        ("train --lower 4 --upper=16", "train --bounds 4 16"),
        ("train --steps 3 --upper 16", "train --steps 3 --bounds 3 16"),
        ("train --lower=2", "train --bounds 2 32"),
        ("compare out --lower 4 --upper 16", "compare out --bounds 4 16"),
        ("gradient-variance --lower 4 --upper 16", "gradient-variance --bounds 4 16"),
        ("allocate p.json --budget 32 --min 4 --max 16", "allocate p.json --budget 32 --bounds 4 16"),
        ("audit log.jsonl --min 4 --max 16", "audit log.jsonl --bounds 4 16"),
    ],
)
def test_two_flags_for_the_bounds(earlier, present):
    with pytest.warns(DeprecationWarning, match="is now --bounds L U"):
        command = parse(earlier.split())
    assert _settings(command) == _settings(parse(present.split()))


@pytest.mark.parametrize("words", [["--trainer", "trl", *TRL], [*TRL, "--trainer=trl"]])
def test_the_trainer_as_a_flag(words, tmp_path):
    with pytest.warns(DeprecationWarning, match="--trainer trl is now allotment train trl"):
        command = parse(["train", *words])
    assert command.settings == parse(["train", "trl", *TRL]).settings
    assert isinstance(command.settings, TRLTrainConfig)
    with pytest.warns(DeprecationWarning, match="--trainer trl is now allotment compare trl"):
        comparison = parse(["compare", str(tmp_path), *words]).comparison()
    assert comparison == parse(["compare", "trl", str(tmp_path), *TRL]).comparison()


def test_the_words_of_other_commands_are_left_alone():
    assert present_words("report", ["--trainer", "run", "--out=page.html"]) == [
        "--trainer",
        "run",
        "--out",
        "page.html",
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--candidates 3", "--candidate-prompts"),
        ("--candidates=3", "multiply by --prompts-per-step"),
    ],
)
def test_a_multiple_of_prompts_is_refused(capsys, words, said):
    assert main(["train", *words.split()]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("words", ["--config c.toml --lower 4", "--resume --out run --upper=40"])
def test_one_bound_beside_those_of_a_file_is_refused(capsys, words):
    with pytest.warns(DeprecationWarning, match="is now --bounds L U"):
        assert main(["train", *words.split()]) == 2
    assert "name both bounds" in capsys.readouterr().err


def test_both_bounds_beside_a_file(tmp_path):
    (tmp_path / "c.toml").write_text("lower = 2\nupper = 9\n")
    file = ["train", "--config", str(tmp_path / "c.toml")]
    assert parse(file).settings.bounds == (2, 9)
    with pytest.warns(DeprecationWarning, match="is now --bounds L U"):
        assert parse([*file, "--lower", "4", "--upper", "16"]).settings.bounds == (4, 16)


def test_the_configuration_of_an_earlier_run():
    values = json.loads((EARLIER / "config.json").read_text())
    assert {"lower": 4, "upper": 16, "candidates": 3, "objective": ["dr-grpo"]}.items() <= values.items()
    config = TrainConfig.from_json(EARLIER / "config.json")
    assert (config.bounds, config.candidate_prompts, config.asked_prompts) == ((4, 16), 12, 12)
    assert config.objective == ("dr_grpo",)
    without = {name: value for name, value in values.items() if name not in ("lower", "candidates")}
    config = TrainConfig.from_values(without | {"candidates": None}, "here")
    assert (config.bounds, config.candidate_prompts, config.asked_prompts) == ((3, 16), None, 16)


def test_an_earlier_run_is_continued_as_if_the_present_version_had_begun_it(tmp_path):
    """On another processor the first two steps may differ from those of the file in the last digits."""
    shutil.copytree(EARLIER, tmp_path / "resumed")
    assert main(["train", "--resume", "--out", str(tmp_path / "resumed"), "--steps", "4"]) == 0
    flags = "--planner mopps --candidate-prompts 12 --bounds 4 16 --objective dr_grpo --estimator dr_grpo --steps 4"
    assert main(["train", *RUN.split(), *flags.split(), "--out", str(tmp_path / "whole")]) == 0
    assert (tmp_path / "resumed" / "config.json").read_bytes() == (tmp_path / "whole" / "config.json").read_bytes()
    for log, lines in (("metrics.jsonl", 5), ("rollouts.jsonl", 16)):
        resumed, whole = (
            [json.loads(line) for line in (tmp_path / run / log).read_text().splitlines()]
            for run in ("resumed", "whole")
        )
        assert len(resumed) == lines
        assert [_nearly(row) for row in resumed] == [_nearly(row) for row in whole]
        assert (tmp_path / "resumed" / log).read_text().startswith((EARLIER / log).read_text())


def _settings(command):
    values = dict(vars(command))
    return values | {"settings": values["settings"].model_dump()} if "settings" in values else values


def _nearly(row):
    return {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in row.items()}
