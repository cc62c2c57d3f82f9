"""The page of an audit, from real replays of made logs."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from report_rows import audited

from allotment.audit.equivalence import Interval
from allotment.report.audit_figures import figures
from allotment.report.audit_page import facts, next_step, percent, way_name, write_audit


@pytest.fixture
def spread(tmp_path):
    random = np.random.default_rng(0)
    return audited(tmp_path, random.binomial(8, random.beta(0.4, 0.4, 60)[:, None], (60, 12)), notes=["a & b"])


def specifications(text):
    return [json.loads(found) for found in re.findall(r'<script type="application/json">(.*?)</script>', text)]


def test_the_page_has_the_verdict_the_figures_and_their_numbers(spread, tmp_path):
    text = write_audit([spread], tmp_path / "sub" / "page.html").read_text()
    assert spread.summary.verdict.text.replace("'", "&#39;") in text
    assert "a &amp; b" in text
    worth, allotments, calibration = specifications(text)
    assert worth["data"][1]["y"] == pytest.approx(spread.summary.equivalence.worth.tolist())
    assert len(allotments["data"][0]["x"]) == 60
    assert len(calibration["data"][1]["x"]) == len(spread.summary.calibration)
    scrolled = re.findall(r'<div class="numbers" tabindex="0" role="region" aria-label="Numbers of (.*?)">', text)
    assert scrolled == [figure.title for figure in figures(spread)]
    assert not re.search(r'(src|href)="http', text[: text.index("<noscript>")])  # plotly.js comes after
    assert len(text) < 5e6


def test_two_runs_on_one_page_in_a_folder(spread, tmp_path):
    file = write_audit([spread, spread], tmp_path)
    assert file == tmp_path / "audit.html"
    assert len(specifications(file.read_text())) == 6


def test_a_log_without_signal_says_so(tmp_path):
    found = audited(tmp_path, [[0, 0], [8, 8], [0, 0]])
    assert "nothing can be said" in write_audit([found], tmp_path / "page.html").read_text()
    assert next(figure.title for figure in figures(found)) == "What each prompt would have got"
    assert ("Gradient variance over uniform’s", "not known") in facts(found.summary)


def test_prompt_ids_cannot_break_out(tmp_path):
    found = audited(tmp_path, [[1, 4], [3, 5]], name="</script><script>alert(1)</script>")
    text = write_audit([found], tmp_path / "page.html").read_text()
    assert "<script>alert" not in text
    assert len(specifications(text)) == 3


def test_the_page_begins_with_a_sentence_and_a_badge_and_ends_with_what_to_do(spread, tmp_path):
    text = write_audit([spread], tmp_path / "page.html").read_text()
    verdict = spread.summary.verdict
    assert verdict.outcome == "helps"
    assert re.match(r"\d+ % fewer rollouts for the same gradient precision \(\d+ to \d+ %\)", verdict.headline)
    body = text[text.index("<section") :]
    assert body.index('<span class="badge helps">helps</span>') < body.index(verdict.headline) < body.index("dl class")
    assert "num_generations=8" in next_step(spread)
    for name in ("Other ways to spend the rollouts", "What it rests on", "By epoch", "How it was compared"):
        assert re.search(rf'<h2 id="run-1-[a-z]+">{name}</h2>', text)
    for step in spread.summary.advice:
        assert body.index(verdict.headline) < body.index(step) < body.index("dl class")
    wasted = spread.wasted
    assert len(wasted) == 10
    assert [w.all_failed + w.all_succeeded for w in wasted] == sorted(w.all_failed + w.all_succeeded for w in wasted)[
        ::-1
    ]


def test_an_overview_stands_before_several_runs(spread, tmp_path):
    text = write_audit([spread, spread], tmp_path / "page.html").read_text()
    assert text.index(">2 runs</h2>") < text.index('id="run-1"')
    assert "2 runs" not in write_audit([spread], tmp_path / "page.html").read_text()


def test_a_log_that_speaks_for_nothing_proposes_nothing(tmp_path):
    found = audited(tmp_path, [[0, 0], [8, 8], [0, 0]])
    assert next_step(found) is None
    assert "no prompt was sometimes solved" in found.summary.verdict.headline


def test_contents_lead_to_what_is_there(spread, tmp_path):
    text = write_audit([spread, spread], tmp_path / "page.html").read_text()
    ids, links = (re.findall(pattern, text) for pattern in (r' id="([^"]+)"', r'href="#([^"]+)"'))
    assert len(set(ids)) == len(ids)
    assert set(links) <= set(ids)
    assert {f"run-{run}-{part}" for run in (1, 2) for part in ("ways", "epochs", "figure-3", "compared")} <= set(links)


def test_other_ways_have_their_share_of_the_rollouts_and_its_interval(spread, tmp_path):
    text = write_audit([spread], tmp_path / "page.html").read_text()
    ways = spread.summary.counterfactuals
    assert {(way.what, way.rollouts_per_prompt) for way in ways.found} >= {("split", 8), ("split, belief", 2)}
    for way in ways.found:
        assert f">{way.rollouts_per_prompt}: {way_name(way)}</th>" in text
        assert all(f"<span>{percent(cell.rollouts)}</span>" in text for cell in way.by_range.values())
    assert all(assumption.replace("'", "&#39;") in text for assumption in ways.assumes)
    assert percent(Interval(0.5, 0.4, math.inf)) == "50 (40 to more than tried)"


def test_a_doubted_verdict_looks_doubted(spread, tmp_path):
    doubted = replace(spread.summary.verdict, first_look=("groups of 512",))
    found = replace(spread, summary=replace(spread.summary, verdict=doubted))
    text = write_audit([found], tmp_path / "page.html").read_text()
    assert '<span class="badge doubted">helps?</span>' in text
    assert text.index("<h3>Look first</h3>") < text.index("groups of 512") < text.index("<h3>What to do</h3>")
    assert "Look first" not in write_audit([spread], tmp_path / "page.html").read_text()
