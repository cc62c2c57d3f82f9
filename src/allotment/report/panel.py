"""What a card is made of: its words, its figures, and the numbers behind each as a table for the page and for JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from allotment.report.data import Arm
from allotment.report.predictions import Bin

Cell = str | int | float | None


@dataclass(frozen=True)
class Table:
    """Columns with their names; None where there is no number."""

    columns: tuple[str, ...]
    rows: Sequence[Sequence[Cell]]

    @classmethod
    def by_arm(cls, columns: Sequence[str], arms: Sequence[Arm], rows: Iterable[Iterable[Sequence[Cell]]]) -> Table:
        """The rows of each arm, with its label in front."""
        labelled = [(arm.label, *row) for arm, found in zip(arms, rows, strict=True) for row in found]
        return cls(("planner", *columns), labelled)

    def to_json(self) -> dict[str, Any]:
        """``columns`` and ``rows``, numbers to six significant digits."""
        return {"columns": list(self.columns), "rows": [[_short(cell) for cell in row] for row in self.rows]}


def bins_table(found: Sequence[Bin]) -> Table:
    """Tenths of the predicted success probability."""
    return Table(
        ("from", "to", "prompts", "rollouts", "predicted", "observed", "low 95 %", "high 95 %", "mean n"),
        [(b.lower, b.upper, b.prompts, b.rollouts, b.predicted, b.observed, *b.interval, b.mean_count) for b in found],
    )


def cell_text(cell: Cell) -> str:
    """A cell as the page shows it: four significant digits, whole numbers in full."""
    if cell is None:
        return "–"
    if isinstance(cell, float):
        return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.4g}"
    return f"{cell:,}" if isinstance(cell, int) else cell


def _short(cell: Cell) -> Cell:
    return float(f"{cell:.6g}") if isinstance(cell, float) else cell


CardId = Literal["learning", "allocation", "budget", "calibration", "history", "variance", "weights", "judged"]


@dataclass(frozen=True)
class CardText:
    """The words around a card's figures."""

    title: str
    read: str
    """How to read it; ``{measured}`` stands for how the runs' success was measured."""
    limits: str
    """What it does not show."""


TEXTS: dict[CardId, CardText] = {
    "learning": CardText(
        "Learning for what was spent",
        "Compare lines at the same place on the horizontal axis: there both have spent the same, and the higher line "
        "has learned more for it. A run with a larger budget reaches further to the right in the same number of "
        "steps. Each point is the mean probability of a right answer, {measured}. A thick line is the mean over "
        "seeds, its band one standard error to each side; thin lines are single runs.",
        "The vertical axis does not start at 0, so small differences look large. Bands are no test: they ignore that "
        "seeds are paired; the differences in the table above do not. Seeds differ in tokens and time at the same "
        "step, and a point stands at their mean. Only generated tokens count, not the cost of the update; time is "
        "that of the steps without evaluation, on the machine that ran them, with whatever else it was doing.",
    ),
    "allocation": CardText(
        "Who gets the rollouts",
        "A dot is one prompt in one step: how likely it was predicted to be solved, and how many rollouts it got "
        "(dots are moved a little up or down so that they do not hide each other). Grey dots are prompts that the run "
        "met for the first time, of which a planner that learns from counts knows nothing. The line with markers is "
        "the mean of the other dots, by tenths of the prediction; the dotted line is the mean of all, what uniform "
        "would give. The reward of one rollout has variance p(1−p), largest at p = ½: there one more rollout tells "
        "most. Where a dashed curve is drawn, it is 1 + k·√(p(1−p)), the best split for RLOO if every prediction were "
        "exact.",
        "Following the curve is no merit in itself: where the prediction is wrong, so is the count (see the "
        "calibration). A planner that reckons with its own doubt is rightly flatter than the curve, which also "
        "ignores the bounds on counts and that every batch divides its own budget. The table holds the line of means; "
        "the dots are the lines of rollouts.jsonl.",
    ),
    "calibration": CardText(
        "Did the predictions come true?",
        "Prompts are sorted by their prediction, made before their rollouts, into tenths. A point on the dashed "
        "diagonal means: of the rollouts predicted to succeed with probability 0.3, a share of 0.3 did. Above it the "
        "planner was too pessimistic, below it too optimistic. Error bars are 95 % intervals; the columns underneath "
        "count the prompts behind each point, anew in every step.",
        "A predictor that says the same of every prompt can lie on the diagonal and be useless: look also at how far "
        "its predictions spread. The intervals take rollouts for independent; the same prompts return, so the truth "
        "is somewhat wider. Each planner is judged on the rollouts of its own runs.",
    ),
    "budget": CardText(
        "Where the budget went",
        "In a heat map, a column is a stretch of steps and a row a tenth of the predicted success probability; the "
        "darker the cell on a light screen (the brighter on a dark one), the more rollouts a prompt there got on "
        "average. The other figure puts all prompts of all steps in line, those with the fewest rollouts first, and "
        "shows which share of the rollouts went to the first so many per cent. The dashed diagonal is equal shares; "
        "the further below it a line hangs, the more the planner concentrates.",
        "How uneven the shares are says nothing about how good they are. A prompt counts anew in each step, so that "
        "prompts which were drawn more often do not look favoured.",
    ),
    "history": CardText(
        "Did the predictions stay true?",
        "One figure shows by how much predictions missed the observed share of successes beyond what the chance of "
        "few rollouts explains: 0 means as good as knowing each probability. The other shows whether they were too "
        "low (above 0) or too high (below): a planner that lags behind a policy that improves stays above 0.",
        "Each point is an average over a stretch of steps and hides the spread inside. New prompts come in throughout, "
        "and nothing can be known about them beforehand; so the error need not go to 0.",
    ),
    "variance": CardText(
        "Was the promised variance reached?",
        "The dashed line is the variance of the gradient that each plan expected, divided by that of the same rollouts "
        "dealt out equally. A marker is the same with the variances of the rewards that came. Below the dotted line "
        "at 1 the allocation pays; a marker above the dashed line means that it paid less than the plan thought. "
        "Bars are one standard error, from the spread over steps.",
        "Both take the spread of the score functions to be the same for all prompts, which is an assumption of the "
        "price. Planners that price something else (measured gradient moments, say) promise another quantity than "
        "the markers measure. A prompt whose rollouts are all right or all wrong is taken for one without variance. "
        "With a second look, counts depend on the first rollouts, and the markers lean low.",
    ),
    "weights": CardText(
        "What the training really optimises",
        "The weight of a prompt is its expected gradient in one on-policy step, divided by the true gradient of its "
        "success probability, and by the mean of this over all prompts. At 1 for all, training follows the gradient "
        "of the mean success, and the allocation only lowers its noise. Anything else is another objective: prompts "
        "above 1 count more than their share. The first figure shows what each planner was trained with, the others "
        "what the same counts would do with other advantages and ways to average.",
        "Computed from counts and predictions, exactly, for answers of equal length and rewards of 0 and 1; with "
        "unequal lengths, dividing by an answer’s length tilts further. The prediction stands for the true "
        "probability. Clipping, several updates on a batch and a KL penalty are left out.",
    ),
    "judged": CardText(
        "Is the learnt reward right?",
        "The line is the share of rollouts that the learnt reward takes for right, the dashed line the share that the "
        "verifier does; the run trains on the former and never sees the latter. Where the line rises and the dashed "
        "one does not, the policy has found what the reward likes and the task does not ask for.",
        "Shares that agree can be of different rollouts. Where a learnt reward draws the line between right and wrong "
        "is a choice: a constant distance is a matter of that, a growing one of what is learnt. The rollouts are those "
        "of the step; the success of the other cards is the verifier’s.",
    ),
}


@dataclass(frozen=True)
class Panel:
    """One figure."""

    title: str
    specification: str
    """Plotly JSON."""
    label: str
    """What it shows, for those who cannot see it."""
    table: Table
    """Its numbers."""
    note: str = ""
    """Words beside it: its numbers, or how to read it."""
    arm: int | None = None
    """Index of the one arm it is about; None if it shows all."""


@dataclass(frozen=True)
class Card:
    """A section of the page. Without panels it is one line that says why."""

    id: CardId
    panels: list[Panel] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    """Arms, or the whole card, that are left out, each with the reason."""

    @property
    def text(self) -> CardText:
        """The words around the figures."""
        return TEXTS[self.id]


def draw_each(card: Card, arms: Sequence[Arm], draw: Callable[[int, Arm], Panel | str]) -> Card:
    """``card`` with what ``draw`` makes of each arm and its number: a figure, or the reason why there is none."""
    for number, arm in enumerate(arms):
        drawn = draw(number, arm)
        if isinstance(drawn, Panel):
            card.panels.append(drawn)
        else:
            card.absent.append(drawn)
    return card


def no_predictions(arm: Arm, *, any_rollouts: bool) -> str:
    """Why an arm has no figure of predictions."""
    return f"{arm.label} {'makes no predictions' if any_rollouts else 'has no rollouts logged yet'}."
