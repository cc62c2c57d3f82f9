"""The page of an audit: what a log says, and what another split of its rollouts would have been worth."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from allotment.audit.advice import PRECISION
from allotment.errors import needs_extra

if TYPE_CHECKING:
    from allotment.audit.counterfactual import Counterfactual
    from allotment.audit.equivalence import Interval
    from allotment.audit.summary import Audited, Summary


def write_audit(audited: Sequence[Audited], out: Path) -> Path:
    """Write one self-contained HTML page about one or more audited runs.

    Args:
        audited: at least one, in the order of the page.
        out: the file to write (replaced if it exists), or a folder, which gets an ``audit.html``.

    Raises:
        MissingExtraError: plotly or jinja2 is not installed.
    """
    with needs_extra("report"):
        import jinja2  # noqa: F401
        import plotly  # noqa: F401
    from allotment.report.audit_figures import figures
    from allotment.report.page import fill, write_page

    runs = [(each, facts(each.summary), figures(each), next_step(each)) for each in audited]
    filters: dict[str, Callable[..., str]] = {
        "interval": interval,
        "figure": _number,
        "percent": percent,
        "way_name": way_name,
        "plain": _plain,
    }
    return write_page(fill("audit.html.j2", filters, runs=runs, precision=PRECISION), out, "audit.html")


def next_step(run: Audited) -> str | None:
    """A configuration to start with, for TRL and verl; None where the log does not speak for one, or is in doubt."""
    if run.summary.verdict.outcome != "helps" or run.summary.verdict.first_look:
        return None
    n = run.summary.budget_per_prompt
    return (
        "# TRL: AllotmentGRPOTrainer in place of GRPOTrainer (docs/trl.md)\n"
        f'AllotmentGRPOConfig(..., planner="vip", num_generations={n}, loss_type="dr_grpo", scale_rewards="none")\n\n'
        "# verl (docs/verl.md)\n"
        f"trainer.v1.trainer_mode=allotment_sync algorithm.adv_estimator=allotment_rloo actor_rollout_ref.rollout.n={n}"
    )


def facts(summary: Summary) -> list[tuple[str, str]]:
    """The figures that stand beside the verdict, as (name, value)."""
    worth, waste, budget = summary.equivalence, summary.waste, summary.budget_per_prompt
    found = [
        ("In the log", f"{summary.prompts:,} prompts, {summary.visits:,} visits"),
        ("Rollouts without signal", f"{100 * waste.without_signal:.1f} % of {waste.rollouts:,}"),
        ("… of groups that all failed", f"{100 * waste.all_failed / waste.rollouts:.1f} %"),
        ("… of groups that all succeeded", f"{100 * waste.all_succeeded / waste.rollouts:.1f} %"),
        ("Gradient variance over uniform’s", interval(worth.variance_ratio)),
        (f"Rollouts a prompt for the precision of {budget}", interval(worth.rollouts)),
        (f"Rollouts of uniform worth {budget} allotted", interval(worth.uniform_rollouts)),
    ]
    if summary.lengths is not None:
        lengths = summary.lengths
        found.append((f"{lengths.unit.capitalize()}, logged", f"{lengths.logged:,.0f}"))
        found.append(
            (f"{lengths.unit.capitalize()}, uniform and VIP", f"{lengths.uniform:,.0f}, {lengths.allotted:,.0f}")
        )
        if math.isfinite(lengths.equivalent):
            found.append((f"{lengths.unit.capitalize()} of VIP at uniform’s precision", f"{lengths.equivalent:,.0f}"))
    return found


def interval(value: Interval) -> str:
    """A figure with its 95 % interval."""
    if math.isnan(value.value):
        return "not known"
    return f"{_number(value.value)} ({_number(value.low)} to {_number(value.high)})"


def percent(value: Interval) -> str:
    """A share with its 95 % interval, in %."""
    parts = ["more than tried" if math.isinf(v) else f"{100 * v:.0f}" for v in (value.value, value.low, value.high)]
    return parts[0] if len(set(parts)) == 1 else f"{parts[0]} ({parts[1]} to {parts[2]})"


def way_name(way: Counterfactual) -> str:
    """What is done with the rollouts, and whether the belief is part of the baseline."""
    return way.what if way.prompts == 1 else way.what.replace("more", f"{way.prompts:.3g} x the")


def _plain(value: object) -> str:
    """A setting: yes or no, a number with separators, or as it is."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _number(value: float) -> str:
    if math.isnan(value):
        return "not known"
    return "more than tried" if math.isinf(value) else f"{value:.3g}"
