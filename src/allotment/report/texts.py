"""What the page says about each card: its title, how to read it, and what it does not show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

CardId = Literal["learning", "allocation", "calibration"]


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
}
