"""The page in headless Chromium: drawn without errors, on a phone and a desk, light and dark, by hand and by keyboard.

Screenshots and the printed page are left in $ALLOTMENT_ARTEFACTS, or in a folder of pytest's own whose path is printed.
"""

import os
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from report_rows import audited, evaluation, group, write_run_directory

from allotment.report import write_report
from allotment.report.audit_page import write_audit

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium")

FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
STEPS, PROMPTS = 40, 60
SCREENS = [(1200, "light"), (1200, "dark"), (390, "light"), (390, "dark")]

EMPTY = """() => [...document.querySelectorAll(".figure")].filter((figure) =>
  !figure.querySelector(".trace, .heatmaplayer image, .point") || figure.getBoundingClientRect().height < 200
).map((figure) => figure.ariaLabel)"""

CONTRASTS = """() => {
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (c) => { const s = c / 255; return s <= 0.03928 ? s / 12.92 : ((s + 0.055) / 1.055) ** 2.4; };
  const luminance = ([r, g, b]) => 0.2126 * light(r) + 0.7152 * light(g) + 0.0722 * light(b);
  const ground = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const found = channels(getComputedStyle(e).backgroundColor);
      if (found.length === 3 || found[3] === 1) return found;
    }
    return [255, 255, 255];
  };
  const poor = [];
  const walker = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility() || element.closest("script")) continue;
    const style = getComputedStyle(element);
    const text = luminance(channels(element.closest("svg") ? style.fill : style.color));
    const back = luminance(ground(element));
    const contrast = (Math.max(text, back) + 0.05) / (Math.min(text, back) + 0.05);
    if (contrast < 4.5 && !element.ariaHidden) poor.push([walker.currentNode.data.slice(0, 40), contrast]);
  }
  return poor;
}"""

CUT_OFF = """() => {
  const cut = [];
  for (const figure of document.querySelectorAll(".figure")) {
    const box = figure.getBoundingClientRect();
    for (const text of figure.querySelectorAll("svg text")) {
      const at = text.getBoundingClientRect();
      if (!at.width) continue;
      if (at.left < box.left - 1 || at.right > box.right + 1 || at.top < box.top - 1 || at.bottom > box.bottom + 1)
        cut.push([figure.ariaLabel, text.textContent]);
    }
    for (const axis of ["xtick", "ytick"]) {
      const boxes = [...figure.querySelectorAll(`.${axis} text`)].map((text) => text.getBoundingClientRect());
      boxes.forEach((a, i) => boxes.slice(i + 1).forEach((b) => {
        if (a.left < b.right && b.left < a.right && a.top + 2 < b.bottom && b.top + 2 < a.bottom)
          cut.push([figure.ariaLabel, `${axis} labels overlap`]);
      }));
    }
  }
  return cut;
}"""


def run_directory(folder, planner, seed):
    """A run whose prompts get likelier to be solved; vip gives more rollouts to the uncertain ones."""
    rng = np.random.default_rng(seed)
    ability_Q = rng.uniform(-3, 3, PROMPTS)
    rollouts, metrics = [], [evaluation(0, 0.4, 0.3)]
    for step in range(1, STEPS + 1):
        for q in rng.choice(PROMPTS, 16, replace=False):
            p = 1 / (1 + np.exp(-ability_Q[q] - step / 30))
            n = 8 if planner == "uniform" else round(3 + 28 * p * (1 - p))  # the budget is not conserved
            rollouts.append(group(n, int(rng.binomial(n, p)), round(float(p), 6), step, f"task-{q}"))
        row = {"step": step, "rollouts_total": 128 * step, "tokens_total": 1280 * step, "zero_variance_groups": 0.4}
        row |= {"min_count": 3, "max_count": 10, "objective": 0.9 + 0.01 * seed, "uniform_objective": 1.0}
        gain = step / (160 if planner == "vip" else 200) + rng.normal(0, 0.01)
        evaluated = {"pool_success": 0.4 + gain, "held_out_success": 0.3 + gain / 2}
        metrics.append(row | (evaluated if step % 10 == 0 else {}))
    path = folder / f"{planner}-{seed}"
    seconds = [0.2] * STEPS
    return write_run_directory(
        path, planner=planner, seed=seed, steps=STEPS, metrics=metrics, rollouts=rollouts, seconds=seconds
    )


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A page about four runs of two planners."""
    folder = tmp_path_factory.mktemp("runs")
    runs = [run_directory(folder, planner, seed) for planner in ("uniform", "vip") for seed in (0, 1)]
    return write_report(runs, folder / "report.html")


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory):
    """Where screenshots go."""
    named = os.environ.get("ALLOTMENT_ARTEFACTS")
    folder = Path(named) if named else tmp_path_factory.mktemp("report-screens")
    folder.mkdir(parents=True, exist_ok=True)
    print(f"screenshots: {folder}")
    return folder


@pytest.fixture(scope="module")
def browser():
    """One Chromium for all tests."""
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def opened(browser, report):
    """Opens the page on a screen; fails at the end if the console had anything to say or anything else was loaded."""
    contexts, heard = [], []

    def visit(width=1200, scheme="light", path=report):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda line: heard.append(line.text))
        page.on("pageerror", lambda error: heard.append(str(error)))
        page.on(
            "request", lambda request: request.url.startswith(("file:", "data:", "blob:")) or heard.append(request.url)
        )
        page.goto(path.as_uri())
        page.wait_for_function("drawn")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert heard == []


@pytest.mark.parametrize(("width", "scheme"), SCREENS)
def test_every_card_is_drawn_and_fits_the_screen(opened, artefacts, width, scheme):
    page = opened(width, scheme)
    cards = page.locator("section[id]:has(.figure)")
    assert cards.count() == 7
    assert page.evaluate(EMPTY) == []
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate(CUT_OFF) == []
    page.locator("#explorer-rows button").first.click()
    page.locator("details summary").first.click()
    assert page.evaluate(CONTRASTS) == []
    page.screenshot(path=artefacts / f"report-{width}-{scheme}.png", full_page=True)


@pytest.mark.parametrize(("width", "scheme"), SCREENS)
def test_an_audit_is_drawn_and_fits_the_screen(opened, artefacts, tmp_path, width, scheme):
    random = np.random.default_rng(0)
    successes = random.binomial(8, random.beta(0.4, 0.4, PROMPTS)[:, None], (PROMPTS, 12))
    page = opened(width, scheme, write_audit([audited(tmp_path, successes)], tmp_path / "audit.html"))
    assert page.locator(".figure").count() == 3
    assert page.evaluate(EMPTY) == []
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate(CUT_OFF) == []
    page.locator("details summary").first.click()
    assert page.evaluate(CONTRASTS) == []
    page.screenshot(path=artefacts / f"audit-{width}-{scheme}.png", full_page=True)


def test_a_screen_that_turns_dark_redraws_the_figures(opened):
    page = opened()
    before = page.locator(".figure svg text").first.evaluate("text => getComputedStyle(text).fill")
    page.emulate_media(color_scheme="dark")
    page.wait_for_function("dark")
    assert page.locator(".figure svg text").first.evaluate("text => getComputedStyle(text).fill") != before
    assert page.evaluate(CONTRASTS) == []


def test_searching_the_prompts(opened):
    page = opened()
    assert page.locator("#explorer-count").text_content() == "25 of 60 prompts"
    page.get_by_label("Search").fill("TASK-1")
    assert page.locator("#explorer-count").text_content() == "11 of 11 prompts"  # 1 and 10 to 19
    page.get_by_label("Search").fill("nothing like it")
    assert page.locator("#explorer-rows tr").count() == 0
    page.get_by_label("Search").fill("")
    page.get_by_role("button", name="Show more").click()
    assert page.locator("#explorer-rows tr").count() == 50


def test_sorting_the_prompts(opened):
    page = opened()
    page.locator("#explorer-run").select_option("vip, seed 1")
    for place, column in ((3, "Rollouts"), (4, "Success"), (5, "Last prediction")):
        head = page.locator(".explorer th", has_text=column)
        for direction in ("descending", "ascending"):
            while head.get_attribute("aria-sort") != direction:
                head.get_by_role("button").click()
            cells = list(map(float, page.locator(f"#explorer-rows td:nth-child({place})").all_text_contents()))
            assert cells == sorted(cells, reverse=direction == "descending")


def test_a_prompt_opens_by_keyboard_and_shows_its_history(opened):
    page = opened()
    page.get_by_label("Search").focus()
    for _ in range(6):  # five heads of columns, then the first prompt
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('#explorer-rows') !== null")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    assert page.locator(".opened .history .main-svg").count() > 0
    assert "predicted" in page.locator(".opened .quiet").text_content()
    page.keyboard.press("Enter")
    assert page.locator(".opened").count() == 0


def test_the_legend_hides_a_planner_everywhere(opened):
    page = opened()
    lines = page.locator("#learning .scatterlayer .trace")
    before = lines.count()
    page.get_by_role("button", name="vip", exact=True).click()
    assert 0 < lines.count() < before
    assert not page.locator("[data-panel-arm='1']").first.is_visible()
    page.get_by_role("button", name="vip", exact=True).click()
    assert lines.count() == before
    assert page.locator("[data-panel-arm='1'] .main-svg").first.is_visible()


def test_figures_and_fields_have_names(opened):
    page = opened()
    names = [figure.get_attribute("aria-label") for figure in page.locator("[role=img]").all()]
    assert all(names)
    assert page.locator("html").get_attribute("lang") == "en"
    assert page.evaluate("[...document.querySelectorAll('input, select')].every((field) => field.labels.length === 1)")
    levels = page.evaluate("[...document.querySelectorAll('h1, h2, h3')].map((head) => Number(head.tagName[1]))")
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))


def test_it_prints_on_white_within_the_sheet(opened, artefacts):
    page = opened(scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.set_viewport_size({"width": 690, "height": 1000})  # A4 less margins, at 96 pixels an inch
    assert page.evaluate("document.documentElement.scrollWidth") <= 690
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(31, 35, 40)"
    assert page.evaluate(CONTRASTS) == []
    page.pdf(
        path=artefacts / "report.pdf", format="A4", margin=dict.fromkeys(("top", "bottom", "left", "right"), "13mm")
    )


def test_names_of_prompts_are_text_in_the_explorer_too(opened, tmp_path):
    bad = "</script><img src=x onerror=alert(1)>"
    run = write_run_directory(tmp_path / "run", rollouts=[group(4, 1, 0.5, prompt=bad), group(5, 1, None, prompt="b")])
    page = opened(path=write_report([run], tmp_path / "report.html"))
    assert bad in page.locator("#explorer-rows button").all_text_contents()
    page.locator("#explorer-rows button").first.click()
    assert page.locator(".opened .main-svg").count() > 0
