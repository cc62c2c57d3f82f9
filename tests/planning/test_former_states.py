"""States of the version before planners had a contract and one machine for rounds (the parent of commit 6e0233e).

The files in ``data`` were written by it: :func:`history`, then ``save``. ``former_*_next`` is what it did next,
:func:`continuation`. One-round planners go on from them; what was under way between rounds is kept in another form now.
"""

from pathlib import Path

import numpy as np
import pytest
from planning_cases import assert_same, snapshot

from allotment import VIP
from allotment.errors import StateVersionError
from allotment.planning import make_planner
from allotment.prediction import DiscountedCounts
from allotment.state import load_state

DATA = Path(__file__).parent / "data"
IDS = ["a", "b", 7, "7", "täsk/3", -5]


def answers(plan):
    """Of every rollout: right or wrong by prompt, step and place; keyword arguments of ``tell``."""
    groups, places = plan.group_ids(), [j for n in plan.counts.tolist() for j in range(n)]
    right = [(5 * j + plan.step + plan.round) % 6 < IDS.index(i) for i, j in zip(groups, places, strict=True)]
    return {
        "rewards": [float(is_right) for is_right in right],
        "group_ids": groups,
        "answers": ["right" if is_right else f"wrong {j % 2}" for is_right, j in zip(right, places, strict=True)],
    }


def part(told, chosen):
    return {name: column[chosen] for name, column in told.items()}


def history(planner):
    """Three steps; then a step of which a part was told, before its first round is complete or after it."""
    for _ in range(3):
        while True:
            plan = planner.ask(IDS)
            planner.tell(plan, **answers(plan))
            if planner.done:
                break
    plan = planner.ask(IDS)
    told = answers(plan)
    planner.tell(plan, **part(told, slice(0, 7)), final=False)
    if planner.contract.several_rounds:
        planner.tell(plan, **part(told, slice(7, None)))
    return planner


def continuation(planner):
    """The open plan is told, and three steps follow: what they planned and why."""
    (plan,) = planner.open_plans
    planner.tell(plan, **part(answers(plan), slice(7, None)))
    steps = {}
    for step in range(3):
        plan = planner.ask(IDS)
        belief = {name: array for name, array in vars(plan.posterior).items() if name in FIELDS}
        steps[f"step {step}"] = {"counts": plan.counts, "objective": plan.allocation.objective, **belief}
        planner.tell(plan, **answers(plan))
    return steps


FIELDS = ("mean", "variance", "alpha", "beta")
ONE_ROUND = {
    "vip": lambda: VIP(budget=39, bounds=(3, 12), seed=5),
    "vip_counts": lambda: VIP(budget=39, bounds=(3, 12), seed=5, predictor=DiscountedCounts()),
}
SEVERAL_ROUNDS = {
    "vip-second-look": {},
    "dapo": {"trained_prompts": 3},
    "greso": {"trained_prompts": 3},
    "reinforce-ada": {},
    "optpo": {},
}


@pytest.mark.parametrize("name", ONE_ROUND)
def test_the_state_of_a_planner_of_one_round_is_what_it_was(name):
    former = load_state(DATA / f"former_{name}", kind="planner")
    loaded = ONE_ROUND[name]().load(DATA / f"former_{name}")
    assert_same(loaded.state_dict(), former)


def test_a_planner_of_one_round_goes_on_bit_for_bit():
    """Its numbers come from additions and multiplications alone, so they are the same on every machine."""
    loaded = ONE_ROUND["vip_counts"]().load(DATA / "former_vip_counts")
    assert_same(continuation(loaded), load_state(DATA / "former_vip_counts_next", kind="plans"))
    replayed = history(ONE_ROUND["vip_counts"]())
    continuation(replayed)
    assert_same(loaded.state_dict(), replayed.state_dict())


def test_the_default_planner_goes_on_with_the_same_plans():
    """Numbers differ a little: Newton's method ends elsewhere since, and exponentials differ between machines."""
    steps = continuation(ONE_ROUND["vip"]().load(DATA / "former_vip"))
    for step, former in load_state(DATA / "former_vip_next", kind="plans").items():
        np.testing.assert_array_equal(steps[step]["counts"], former["counts"])
        for field in former:
            np.testing.assert_allclose(steps[step][field], former[field], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", SEVERAL_ROUNDS)
def test_the_state_of_a_planner_of_several_rounds_is_refused(name):
    planner = make_planner(name, budget=39, bounds=(3, 28), seed=5, **SEVERAL_ROUNDS[name])
    before = snapshot(planner)
    with pytest.raises(StateVersionError) as caught:
        planner.load(DATA / f"former_{name}")
    for words in (name, "another format", "got:     1", "allowed: 2", "fix:     load it with the version of allotment"):
        assert words in str(caught.value)
    assert_same(snapshot(planner), before)
