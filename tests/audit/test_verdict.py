"""The verdict, case by case."""

import math
from dataclasses import replace

import pytest

from allotment.audit.equivalence import Interval
from allotment.audit.verdict import ASSUMPTIONS, BELIEVED, Facts, verdict

PLAIN = Facts(
    variance_ratio=Interval(0.78, 0.76, 0.80),
    rollouts=Interval(6.51, 6.4, 6.6),
    budget_per_prompt=8,
    prompts=900,
    first_visits=0.02,
    all_failed=0.3,
    all_succeeded=0.2,
    mean_length=700.0,
    length_unit="tokens",
    order_is_assumed=False,
)


@pytest.mark.parametrize(
    ("ratio", "outcome", "said"),
    [
        (Interval(0.78, 0.76, 0.80), "helps", "0.780 of uniform's (95 % interval 0.760 to 0.800)"),
        (Interval(0.99, 0.97, 1.0), "no difference", "No difference from uniform"),
        (Interval(1.0, 1.0, 1.0), "no difference", "No difference from uniform"),
        (Interval(1.02, 0.9, 1.1), "no difference", "No difference from uniform"),
        (Interval(1.67, 1.5, 1.8), "hurts", "Stay with uniform"),
        (Interval(math.nan, math.nan, math.nan), "cannot say", "nothing can be said"),
    ],
)
def test_the_outcome_follows_from_the_interval(ratio, outcome, said):
    found = verdict(replace(PLAIN, variance_ratio=ratio))
    assert (found.outcome, found.doubts, found.assumptions) == (outcome, (), ASSUMPTIONS)
    assert said in found.text


@pytest.mark.parametrize(("needed", "said"), [(6.51, True), (math.inf, False), (math.nan, False)])
def test_the_equivalent_budget_is_said_where_it_is_known(needed, said):
    text = verdict(replace(PLAIN, rollouts=Interval(needed, needed, needed))).text
    assert ("the same precision with 6.5 instead of 8 rollouts a prompt" in text) == said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mean_length": 6.0}, "answers this short"),
        ({"mean_length": 40.0, "length_unit": "characters"}, "answers this short"),
        ({"mean_length": None}, "lengths are not logged"),
        ({"all_failed": 0.9}, "almost all prompts are at p = 0"),
        ({"all_succeeded": 0.9}, "almost all prompts are solved"),
        ({"first_visits": 1.0}, "one epoch only"),
        ({"first_visits": 0.6}, "60 % of the visits are a prompt's first"),
        ({"prompts": 20}, "20 prompts are few"),
        ({"order_is_assumed": True}, "order is assumed"),
    ],
)
def test_each_condition_raises_its_doubt_and_no_other(change, said):
    (doubt,) = verdict(replace(PLAIN, **change)).doubts
    assert said in doubt


def test_short_unique_answers_are_always_said():
    assert "short and unique" in verdict(PLAIN).assumptions[0]


def test_a_belief_in_the_baseline_is_said_with_what_it_needs():
    found = verdict(replace(PLAIN, believes=True))
    assert found.assumptions == (*ASSUMPTIONS, *BELIEVED)
    assert "rollout's own length" in found.assumptions[-1]
