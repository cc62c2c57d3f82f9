"""The numbers of all figures as JSON, and as tables in the page."""

import html
import json
import re

from report_rows import evaluation, group

from allotment.cli.main import main
from allotment.report import write_report
from allotment.report.page import MOST_PROMPTS
from allotment.report.panel import cell_text

ROLLOUTS = [group(n, n // 2, p, step, f"q{n}") for step in (1, 2) for n, p in ((4, 0.1), (12, 0.4), (8, 0.9))]


def test_the_page_shows_the_numbers_of_the_file(write_run, tmp_path, capsys):
    runs = [write_run(f"v{seed}", seed=seed, rollouts=ROLLOUTS) for seed in (0, 1)]
    page, file = tmp_path / "report.html", tmp_path / "deep" / "figures.json"
    assert main(["report", *map(str, runs), "--out", str(page), "--json", str(file)]) == 0
    assert str(file) in capsys.readouterr().out
    found, text = json.loads(file.read_text()), page.read_text()
    shown = [
        [html.unescape(cell) for cell in re.findall(r"<td>(.*?)</td>", table, re.S)]
        for table in re.findall(r"<details.*?</details>", text, re.S)
    ]
    figures = [figure for card in found["cards"] for figure in card["figures"]]
    assert shown == [[cell_text(cell) for row in figure["rows"] for cell in row] for figure in figures]
    assert {card["id"] for card in found["cards"] if card["figures"]} >= {"learning", "budget", "variance", "weights"}
    assert all(len(row) == len(figure["columns"]) for figure in figures for row in figure["rows"])


def test_learning_curves_by_hand(write_run, tmp_path):
    rows = [[evaluation(step, 0.5, value) for step, value in ((0, 0.1), (1, end))] for end in (0.2, 0.4)]
    runs = [write_run(f"v{s}", seed=s, steps=1, metrics=rows[s], seconds=[2 + s]) for s in (0, 1)]
    write_report(runs, tmp_path / "report.html", tmp_path / "figures.json")
    cards = {card["id"]: card for card in json.loads((tmp_path / "figures.json").read_text())["cards"]}
    by_title = {figure["title"]: figure["rows"] for figure in cards["learning"]["figures"]}
    assert by_title["Held-out prompts, by time"] == [["vip", 0, 0, 0.1, 0, 2], ["vip", 1, 2.5, 0.3, 0.1, 2]]
    assert by_title["Held-out prompts, by rollouts"][1] == ["vip", 1, 128, 0.3, 0.1, 2]


def test_without_all_times_there_are_no_curves_by_time(write_run, tmp_path):
    write_report([write_run("v", seconds=[0.1] * 19)], tmp_path / "report.html", tmp_path / "figures.json")
    learning = json.loads((tmp_path / "figures.json").read_text())["cards"][0]
    assert len(learning["figures"]) == 4
    assert "timing.jsonl of a run does not hold all its steps" in learning["left_out"][0]


def test_the_explorer_keeps_the_prompts_with_the_most_rollouts(write_run, tmp_path):
    rows = [group(4 + (q % 2), 1, 0.5, 1, f"q{q}") for q in range(MOST_PROMPTS + 100)]
    write_report([write_run("v", rollouts=rows)], tmp_path / "report.html", tmp_path / "figures.json")
    text = (tmp_path / "report.html").read_text()
    assert "Left out: 100 of 2,100 prompts of vip, seed 0, those with the fewest rollouts." in text
    (run,) = json.loads(re.search(r'id="explorer-data">(.*?)</script>', text, re.S)[1])["runs"]
    kept = {name for name, _ in run["prompts"]}
    assert len(kept) == MOST_PROMPTS
    assert {f"q{q}" for q in range(1, 2100, 2)} <= kept
    assert len(json.loads((tmp_path / "figures.json").read_text())["prompts"]["rows"]) == MOST_PROMPTS + 100


def test_texts_of_prompts_come_from_the_data_set(write_run, tmp_path):
    rows = [group(4, 1, 0.5, 1, "chain_sum-2x1/0"), group(4, 1, 0.5, 1, "unknown/7")]
    text = write_report([write_run("v", rollouts=rows)], tmp_path / "report.html").read_text()
    data = json.loads(re.search(r'id="explorer-data">(.*?)</script>', text, re.S)[1])
    assert list(data["texts"]) == ["chain_sum-2x1/0"]
    assert "State the final answer" in data["texts"]["chain_sum-2x1/0"]
