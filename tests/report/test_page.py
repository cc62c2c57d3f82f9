"""The whole page: what it says, what it leaves out, and that it needs nothing from elsewhere."""

import builtins
import json
import re
import subprocess
import sys
from importlib.metadata import version

import pytest
from report_rows import evaluation, group

from allotment.errors import MissingExtraError, RunDirectoryError
from allotment.report import write_report

COUNTS = ((3, 0.05), (6, 0.2), (15, 0.5), (8, 0.9))
ROLLOUTS = [group(n, n // 2, p, step, f"q{q}") for step in (1, 2) for q, (n, p) in enumerate(COUNTS)]


@pytest.fixture
def page(tmp_path):
    """Writes a report; its HTML without the plotting library."""

    def write(*runs):
        text = write_report(runs, tmp_path / "out" / "report.html").read_text()
        library = max(re.findall(r"<script>.*?</script>", text, re.S), key=len)
        return text.replace(library, "")

    return write


def specifications(text):
    return [json.loads(found) for found in re.findall(r'<script type="application/json">(.*?)</script>', text, re.S)]


def figures(text):
    """Specifications by card."""
    cards = re.findall(r'<section class="card" id="(\w+)"(.*?)</section>', text, re.S)
    return {name: specifications(inside) for name, inside in cards if name not in ("health", "prompts")}


def test_two_planners_with_seeds(write_run, page):
    runs = [
        write_run(
            f"{name}-{seed}", planner=name, seed=seed, held_out=(0.1, 0.2, end + 0.01 * seed**2), rollouts=ROLLOUTS
        )
        for name, end in (("uniform", 0.3), ("vip", 0.35))
        for seed in (0, 1, 2)
    ]
    text = page(*runs)
    assert "+0.0500\u00a0±\u00a00.0000" in text
    assert "higher than uniform" in text
    assert "4.3 standard errors (3 pairs)" in text
    assert "One seed only" not in text
    panels = {"learning": 4, "allocation": 2, "budget": 3, "calibration": 2, "history": 2, "variance": 2, "weights": 2}
    assert {card: len(found) for card, found in figures(text).items()} == panels
    learning = specifications(text)[0]
    assert len(learning["data"]) == 2 * (3 + 1 + 1)  # three thin runs, a band and the mean, for each planner


def test_it_is_one_file_that_loads_nothing(write_run, page, tmp_path):
    text = page(write_run("a", rollouts=ROLLOUTS))
    assert not re.search(r"""(src|href)=(?!["']?(data:|#))|@import|url\(|fetch\(""", text)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.html"]
    whole = (tmp_path / "out" / "report.html").read_text()
    assert not re.search(r"<(script|link|img|iframe)[^>]*(src|href)=[\"']?https?:", whole)


def test_what_calls_for_a_look_stands_before_the_results_and_the_rest_after_them(write_run, page):
    text = page(write_run("a", rollouts=ROLLOUTS))  # steps spend 32 of 128
    order = [text.index(part) for part in (
        'id="short"', 'aria-label="Contents"', "Look at these first</h2>", "<b>Budget conserved</b>", 'id="summary"',
        "Routine checks</h2>", "<b>Counts within their bounds</b>", 'id="runs"',
    )]  # fmt: skip
    assert order == sorted(order)
    assert text.count("<b>Budget conserved</b>") == 1
    ids, links = (re.findall(pattern, text) for pattern in (r' id="([^"]+)"', r'href="#([^"]+)"'))
    assert len(set(ids)) == len(ids)
    assert set(links) <= set(ids)
    assert {"look", "summary", "allocation", "prompts", "health", "runs"} <= set(links)


def test_the_page_says_when_and_how_it_was_written(write_run, tmp_path):
    page = write_report([write_run("a", rollouts=ROLLOUTS)], tmp_path / "r.html", command="allotment report <a>")
    assert f"Allotment {version('allotment')}, by allotment report &lt;a&gt;." in page.read_text()


def test_a_single_seed_says_that_nothing_can_be_concluded(write_run, page):
    text = page(write_run("u", planner="uniform"), write_run("v", held_out=(0.1, 0.2, 0.4)))
    assert "One seed only: uniform; vip." in text
    assert "+0.1000 to uniform (1 pair): no standard error, so nothing can be concluded" in text
    assert "±" not in text[text.index("<tbody>") : text.index("</tbody>")]


def test_equal_counts_and_missing_predictions_leave_cards_out_with_a_reason(write_run, page):
    equal = [group(8, 4, 0.5), group(8, 1, 0.2)]
    text = page(
        write_run("u", planner="uniform", rollouts=equal),
        write_run("v", rollouts=[group(4, 1, None)]),
        write_run("o", planner="oracle"),
    )
    assert "Left out: uniform gives every prompt 8 rollouts" in text
    assert "Left out: vip makes no predictions." in text
    assert "Left out: oracle has no rollouts logged yet." in text
    panels = {"learning": 4, "allocation": 0, "budget": 1, "calibration": 1, "history": 2, "variance": 0, "weights": 1}
    assert {card: len(found) for card, found in figures(text).items()} == panels


def test_some_null_predictions_are_counted(write_run, page):
    assert "1 prompts without a prediction are left out" in page(
        write_run("v", rollouts=[*ROLLOUTS, group(4, 1, None)])
    )


def test_a_run_killed_before_its_first_evaluation(write_run, page):
    text = page(write_run("v", metrics=[]))
    assert "ended before its first evaluation" in text
    assert "No run has been evaluated yet" in text
    assert specifications(text) == []
    both = page(write_run("u", planner="uniform"), write_run("w", metrics=[]))
    assert "ended before its first evaluation" in both
    assert len(specifications(both)) == 4


def test_a_truncated_log_and_an_unfinished_run_are_said(write_run, page):
    stopped = write_run("b", seed=1, held_out=(0.1, 0.2))
    with open(stopped / "metrics.jsonl", "a") as file:
        file.write('{"step": 1')
    text = page(write_run("a", seed=0), stopped)
    assert "the last line of metrics.jsonl was cut short" in text
    assert "stopped after 10 of 20 steps" in text
    assert len(specifications(text)[0]["data"]) == 2  # the finished run, and a thin line for the other


def test_no_finished_run_is_said(write_run, page):
    assert "No run of vip has finished: its numbers are those after step 10." in page(
        write_run("a", held_out=(0.1, 0.2))
    )


def test_mixed_settings_are_said_and_not_compared(write_run, page):
    text = page(write_run("u", planner="uniform", rollouts_per_prompt=16), write_run("v", regime="short", steps=10))
    assert "differ in more than the planner: steps (20 unless the name says 10);" in text
    assert "regime (scratchpad unless the name says short)" in text
    assert "not compared, for want of a uniform run" in text
    assert "to uniform (" not in text


def test_learning_rates_of_ones_own_are_said_beside_the_difference(write_run, page):
    runs = [
        write_run(f"{name}{seed}", planner=name, seed=seed, learning_rate=rate, held_out=(0.1, 0.2, end + 0.01 * seed))
        for name, rate, end in (("uniform", 3e-4, 0.3), ("vip", 1e-3, 0.35))
        for seed in (0, 1)
    ]
    text = page(*runs)
    assert "to uniform (2 pairs, learning rate 0.001 against 0.0003): higher than uniform" in text
    assert "2 pairs, learning rate 0.001 against 0.0003: higher" in text  # in the table
    assert "each planner ran at its own" in text
    same = page(write_run("u", planner="uniform"), write_run("v"))
    assert "each planner ran at its own" not in same


def test_several_rates_of_uniform_are_said(write_run, page):
    uniform = [write_run(f"u{rate}", planner="uniform", learning_rate=rate) for rate in (1e-4, 1e-2)]
    text = page(*uniform, write_run("v", learning_rate=1e-3))
    assert "not compared, since uniform ran at several learning rates (0.0001, 0.01), none of them its 0.001." in text


def test_objectives_are_named_as_on_the_command_line(write_run, page):
    runs = [write_run("u"), write_run("v"), write_run("w", seed=1, objective=("gdpo", "capo"))]
    text = page(*runs)
    assert "vip, objective gdpo capo" in text
    assert "objective (as by default unless the name says gdpo capo)" in text


def test_a_learnt_reward_stands_beside_the_verifier(write_run, page):
    own, verified = [0.5, 0.8], [0.6, 0.3]
    steps = zip((1, 2), own, verified, strict=True)
    rows = [evaluation(step, 0.5, 0.4, success=a, verified_success=b) for step, a, b in steps]
    text = page(write_run("u"), write_run("v", metrics=rows, objective=("ml-irl",), steps=2))
    (figure,) = figures(text)["judged"]
    assert [line["y"] for line in figure["data"]] == [own, verified]
    assert "judged" not in figures(page(write_run("w")))


def test_plans_of_the_variance_of_rewards_are_not_judged_by_successes_in_silence(write_run, page):
    metrics = [evaluation(step, 0.1, 0.1, predicted_variance_ratio=0.9) for step in (0, 1, 2)]
    rollouts = [group(n, 2, None, step, f"q{n}") for step in (1, 2) for n in (4, 6)]
    said = "read realised_variance_ratio in metrics.jsonl"
    assert said in page(write_run("v", planner="reward-variance", metrics=metrics, rollouts=rollouts, steps=2))
    assert said not in page(write_run("w", metrics=metrics, rollouts=ROLLOUTS, steps=2))


def test_a_directory_given_twice_is_said(write_run, page):
    path = write_run("v")
    assert "was given more than once and counts once" in page(path, path)


def test_names_are_escaped(write_run, page):
    bad = "<img src=x onerror=alert(1)>&\"'"
    text = page(write_run(bad, rollouts=[group(4, 1, 0.5, prompt="</script><b>x"), group(5, 1, 0.2)]))
    assert "<img" not in text
    assert "&lt;img src=x onerror=alert(1)&gt;&amp;" in text
    assert text.count("</script>") == text.count("<script")
    (hover,) = [trace["text"] for figure in specifications(text) for trace in figure["data"] if "text" in trace]
    assert hover[0].startswith("&lt;/script&gt;&lt;b&gt;x, step 1<br>")


def test_the_same_runs_give_the_same_bytes(write_run, tmp_path):
    path = write_run("v", rollouts=ROLLOUTS)
    first, second = (write_report([path], tmp_path / name) for name in ("1.html", "2.html"))
    assert first.read_bytes() == second.read_bytes()


def test_a_folder_gets_report_html(write_run, tmp_path):
    assert write_report([write_run("v")], tmp_path) == tmp_path / "report.html"


def test_nothing_is_written_if_there_is_no_run(tmp_path):
    with pytest.raises(RunDirectoryError):
        write_report([tmp_path], tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["plotly", "jinja2"])
def test_a_missing_extra_says_what_to_install(write_run, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"no {package}[\s\S]*pip install 'allotment\[report\]'"):
        write_report([write_run("v")], tmp_path / "report.html")


def test_importing_loads_neither_torch_nor_the_extra():
    code = "import sys, allotment.report; print([m for m in ('torch', 'plotly', 'jinja2') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_writing_loads_no_torch(write_run, tmp_path, monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        assert name.split(".")[0] != "torch"
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    write_report([write_run("v", rollouts=ROLLOUTS)], tmp_path / "report.html")
