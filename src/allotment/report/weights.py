"""What a combination of advantage and aggregation really optimises, for answers of equal length (``docs/weights.md``).

The same numbers as :func:`allotment.learning.effective.effective_weights`, in closed form and without torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import plotly.graph_objects as go
from scipy.special import gammaln, xlog1py, xlogy

from allotment.audit.figures import bin_numbers
from allotment.report.data import Arm, Study
from allotment.report.figures import PROBABILITIES, TO_ZERO, arm_line, dashed, finish
from allotment.report.panel import Card, Cell, Panel, Table, no_predictions
from allotment.report.predictions import Visits
from allotment.report.style import FAINT, INK, PLANNERS, Look
from allotment.types import FloatArray, IntArray

Advantage = Literal["rloo", "dr_grpo", "grpo"]

GRPO_EPSILON = 1e-4
"""Added to the standard deviation, as TRL does."""


@dataclass(frozen=True)
class Choice:
    """How rollouts become a gradient."""

    advantage: Advantage
    by_rollouts: bool
    """Whether a prompt counts by its rollouts (sequence or token mean) or all prompts equally (prompt mean)."""

    @property
    def name(self) -> str:
        """In words."""
        return f"{self.advantage}, {'sequence or token' if self.by_rollouts else 'prompt'} mean"


ALTERNATIVES = tuple(Choice(a, by) for by in (False, True) for a in ("rloo", "dr_grpo", "grpo"))
"""All combinations, the one that keeps the objective first."""


def trained_choice(arm: Arm) -> Choice:
    """What an arm trained with; TRL's adapter takes the prompt mean."""
    aggregation = getattr(arm.config, "aggregation", "prompt_mean")
    return Choice(arm.config.group_advantage, aggregation != "prompt_mean")


def relative_weights(p_V: FloatArray, n_V: IntArray, choice: Choice) -> FloatArray:
    """[V] expected gradient of each prompt over its true gradient, divided by the mean over all; 1 keeps the objective.

    ``p_V``: [V] success probabilities in (0, 1). ``n_V``: [V] rollouts, >= 1.
    """
    n = n_V.astype(np.float64)
    if choice.advantage == "grpo":
        weight_V = _standardised(p_V, n_V)
    else:
        weight_V = np.where(n > 1, 1.0, 0.0) if choice.advantage == "rloo" else (n - 1) / n
    weight_V = weight_V * n if choice.by_rollouts else weight_V
    return np.asarray(weight_V / weight_V.mean(), dtype=np.float64)


def weights_by_tenth(seen: Visits, choice: Choice) -> list[tuple[float, int, float, float]]:
    """For each tenth of the prediction with prompts: mean prediction, prompts, mean rollouts, mean relative weight."""
    known = ~np.isnan(seen.predicted)
    p_V, n_V = np.clip(seen.predicted[known], 1e-6, 1 - 1e-6), seen.n[known]
    weight_V, place_V = relative_weights(p_V, n_V, choice), bin_numbers(p_V)
    return [
        (float(p_V[at].mean()), int(at.sum()), float(n_V[at].mean()), float(weight_V[at].mean()))
        for at in (place_V == place for place in np.unique(place_V))
    ]


def _standardised(p_V: FloatArray, n_V: IntArray) -> FloatArray:
    """[V] of GRPO: E[K (n - K) / n / (sd(K) + epsilon)] / (n p (1 - p)) for K ~ Binomial(n, p)."""
    weight_V = np.zeros(len(p_V))
    for n in np.unique(n_V[n_V > 1]):
        at = n_V == n
        k = np.arange(1, n)
        spread_K = k * (n - k) / n
        log_choose_K = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
        chance_VK = np.exp(log_choose_K + xlogy(k, p_V[at, None]) + xlog1py(n - k, -p_V[at, None]))
        expected_V = chance_VK @ (spread_K / (np.sqrt(spread_K / (n - 1)) + GRPO_EPSILON))
        weight_V[at] = expected_V / (n * p_V[at] * (1 - p_V[at]))
    return weight_V


WEIGHT_COLUMNS = ("predicted", "prompts", "mean n", "relative weight")
BLUE = PLANNERS["vip"][0]
HOVER = "p about %{x:.2f}: weight %{y:.3f}"
DASH = {"rloo": "solid", "dr_grpo": "dash", "grpo": "dot"}

Weights = list[tuple[float, int, float, float]]


def weight_card(study: Study, looks: Sequence[Look], visited: Sequence[Visits]) -> Card:
    """Effective weight of a prompt against its predicted success: as trained, and with other choices."""
    card = Card("weights")
    known = [not np.isnan(seen.predicted).all() if len(seen) else False for seen in visited]
    for arm, seen, predicted in zip(study.arms, visited, known, strict=True):
        if not predicted:
            card.absent.append(no_predictions(arm, any_rollouts=len(seen) > 0))
    if not any(known):
        return card
    card.panels.append(_as_trained(study, looks, [seen if k else None for seen, k in zip(visited, known, strict=True)]))
    for number, (arm, seen, predicted) in enumerate(zip(study.arms, visited, known, strict=True)):
        if predicted and not arm.is_uniform:
            found = [(choice, weights_by_tenth(seen, choice)) for choice in ALTERNATIVES]
            label = f"Line chart for {arm.label}: relative weight of a prompt against p, a line per loss."
            note = "Blue: prompts count equally. Grey: by their rollouts. Solid rloo, dashed dr_grpo, dotted grpo."
            rows = [(choice.name, *row) for choice, weights in found for row in weights]
            table = Table(("loss", *WEIGHT_COLUMNS), rows)
            card.panels.append(Panel(arm.label, _other_choices(found), label, table, note, number))
    return card


def _as_trained(study: Study, looks: Sequence[Look], visited: Sequence[Visits | None]) -> Panel:
    figure = go.Figure()
    rows: list[tuple[Cell, ...]] = []
    for number, (arm, look, seen) in enumerate(zip(study.arms, looks, visited, strict=True)):
        weights = [] if seen is None else weights_by_tenth(seen, trained_choice(arm))
        rows += [(arm.label, *row) for row in weights]
        x, y = [row[0] for row in weights], [row[3] for row in weights]
        figure.add_trace(arm_line(number, arm, look, x, y, HOVER, marker={"size": 7}))
    label = "Line chart: relative weight of a prompt against its predicted success, one line per planner."
    used = "; ".join(dict.fromkeys(f"{arm.label}: {trained_choice(arm).name}" for arm in study.arms))
    return Panel("As trained", _finished(figure), label, Table(("planner", *WEIGHT_COLUMNS), rows), f"{used}.")


def _other_choices(found: Sequence[tuple[Choice, Weights]]) -> str:
    figure = go.Figure()
    for choice, weights in found:
        figure.add_scatter(
            x=[row[0] for row in weights],
            y=[row[3] for row in weights],
            mode="lines",
            name=choice.name,
            line={"color": FAINT if choice.by_rollouts else BLUE, "width": 2, "dash": DASH[choice.advantage]},
            hovertemplate=f"%{{fullData.name}}<br>{HOVER}<extra></extra>",
        )
    return _finished(figure)


def _finished(figure: go.Figure) -> str:
    figure.add_hline(y=1, line=dashed(INK, 1))
    return finish(figure, "predicted success probability p", "relative weight", x=PROBABILITIES, y=TO_ZERO)
