"""benchmarks/first_visit.py: what its figures are, and the command on the packaged file."""

import sys

import numpy as np
import pytest

import first_visit
from allotment.audit import Settings
from first_visit import Known, Sums


def known(seed=0, prompts=600):
    """Two kinds of prompts, which the siblings tell apart; the embedding says nothing."""
    random = np.random.default_rng(seed)
    kind_M = random.integers(2, size=prompts)
    p_M = np.array([0.5, 0.02])[kind_M]
    successes = random.binomial(8, p_M, size=(2, prompts))
    trials = np.full((2, prompts), 8)
    blocks = {"siblings": first_visit.one_hot(kind_M), "embedding": random.normal(size=(prompts, 4))}
    ids = tuple(map(str, range(prompts)))
    return Known(ids, successes, trials, (successes.sum(0), trials.sum(0)), blocks), p_M


def test_every_prompt_has_its_visits_once_and_the_second_after_all_first_ones():
    log = known()[0].log(32, 1)
    for visit in (1, 2):
        assert sorted(log.prompt[log.visit == visit]) == list(range(600))
    assert log.step[log.visit == 1].max() < log.step[log.visit == 2].min()
    assert np.bincount(log.step).max() == 32


def test_a_missing_second_visit_is_left_out():
    made, _ = known()
    made.successes_2M[1, 0] = made.trials_2M[1, 0] = 0
    log = made.log(32, 0)
    assert (log.prompt == 0).sum() == 1
    assert (log.trials > 0).all()


def test_ratios_are_one_where_nothing_is_known_and_the_optimum_where_the_kinds_are():
    made, p_M = known()
    settings = Settings()
    nothing, siblings, noise = (
        first_visit.sums(made, view, settings, 32, 3).ratio() for view in ("nothing", "siblings", "embedding")
    )
    assert nothing[0][:2].tolist() == [1.0, 1.0]
    easy = (p_M == 0.5).mean()
    counts = (8 - 3 * (1 - easy)) / easy  # hopeless prompts get the least number
    best = (easy * 0.25 / (counts - 1) + (1 - easy) * 0.0196 / 2) / ((easy * 0.25 + (1 - easy) * 0.0196) / 7)
    assert siblings[0][0] == pytest.approx(best, abs=0.03)
    assert abs(noise[0][0] - 1) < 5 * noise[1][0] + 0.02
    assert siblings[0][3] == pytest.approx(0.25 / (easy * 0.25 + (1 - easy) * 0.0196), rel=0.15)  # all of the good kind
    assert abs(nothing[0][3] - 1) < 4 * nothing[1][3]


def test_standard_errors_are_those_of_resampled_prompts():
    random = np.random.default_rng(0)
    uniform = random.gamma(2, size=(4, 300))
    other = Sums(uniform * random.normal(0.9, 0.3, size=uniform.shape), uniform)
    sums = Sums(uniform * random.normal(0.8, 0.3, size=uniform.shape), uniform)
    drawn = [random.integers(300, size=300) for _ in range(2000)]
    again = [Sums(sums.left[:, rows], uniform[:, rows]) for rows in drawn]
    others = [Sums(other.left[:, rows], uniform[:, rows]) for rows in drawn]
    assert np.std([one.ratio()[0] for one in again], axis=0) == pytest.approx(sums.ratio()[1], rel=0.1)
    apart = [one.against(two)[0] for one, two in zip(again, others, strict=True)]
    assert np.std(apart, axis=0) == pytest.approx(sums.against(other)[1], rel=0.1)


def test_blocks_count_the_same():
    made, _ = known()
    vectors = made.vectors("everything")
    assert vectors.shape == (600, 6)
    assert vectors[:, :2].var(0).sum() == pytest.approx(1)
    assert vectors[:, 2:].var(0).sum() == pytest.approx(1)


def test_answers_are_told_by_length_and_size():
    rows = first_visit.answer_features(["12", "-12", "1,200", "3.5", "yes it is"])
    assert np.isfinite(rows).all()
    assert rows[:, 2] == pytest.approx([np.log(13), np.log(13), np.log(1201), np.log(4.5), 0.0])
    assert rows[:, 3].tolist() == [1, 0, 1, 1, 0]


def test_the_command_on_the_packaged_file(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["first_visit.py", "--sets", "smollm2", "--splits", "1", "--views", "siblings"])
    assert first_visit.main() == 0
    said = capsys.readouterr().out
    assert "| nothing | 1.000 (0.000) |" in said
    assert said.count("| siblings | ") == len(first_visit.COLUMNS)
