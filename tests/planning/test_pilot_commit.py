import numpy as np
import pytest
from planning_cases import assert_same, snapshot

from allotment.errors import InfeasibleBudgetError, InvalidInputError
from allotment.methods.planners.pilot_commit import Committed, PilotCommit

IDS = [f"p{q}" for q in range(12)]


def make(**settings):
    return PilotCommit(**{"budget": 32, "bounds": (4, 32), "trained_prompts": 4, **settings})


def one_step(planner, successes, ids=IDS):
    """The counts of every round; ``successes`` of each prompt's first 4 rollouts, all later ones fail."""
    rounds, seen = [], dict.fromkeys(ids, 0)
    while not rounds or not planner.done:
        plan = planner.ask(ids)
        rounds.append(dict(zip(plan.prompt_ids, plan.counts.tolist(), strict=True)))
        rewards = []
        for prompt in plan.group_ids():
            rewards.append(float(seen[prompt] < successes[prompt]))
            seen[prompt] += 1
        planner.tell(plan, rewards, plan.group_ids())
        assert len(rounds) < 20
    return rounds


def test_the_rest_goes_to_the_band_alone():
    """Rates 0, 1/4, 1/2, 3/4, 1 of four: 1/4 to 3/4 pass. The first B of the order drawn get 8 in all."""
    successes = {prompt: q % 5 for q, prompt in enumerate(IDS)}
    *pilots, rest = one_step(make(draw=12), successes)
    assert [set(pilot.values()) for pilot in pilots] == [{4}]
    committed = {prompt for prompt, n in rest.items() if n}
    assert {rest[prompt] for prompt in committed} == {4}
    assert len(committed) == 4
    assert {successes[prompt] for prompt in committed} <= {1, 2, 3}


def test_pilots_go_on_until_enough_pass():
    *pilots, rest = one_step(make(), dict.fromkeys(IDS, 2))
    assert len(pilots) == 1  # B pass at once
    assert sum(rest.values()) == 16
    hard = dict.fromkeys(IDS, 0) | {"p3": 2}
    *pilots, rest = one_step(make(), hard)
    assert [sum(pilot.values()) for pilot in pilots] == [16, 16, 16]  # nobody is left
    assert rest == dict.fromkeys(IDS, 0) | {"p3": 4}  # and no more for those that pass


def test_a_remainder_goes_to_the_first_and_nobody_passing_ends_the_step():
    *_, rest = one_step(make(budget=34), dict.fromkeys(IDS, 2))
    assert sorted(rest.values())[-4:] == [4, 4, 5, 5]
    assert len(one_step(make(), dict.fromkeys(IDS, 4))) == 3


def test_solved_prompts_are_evicted_and_hard_ones_come_again():
    planner = make(evict_from=4)
    successes = {prompt: (0, 4, 2)[q % 3] for q, prompt in enumerate(IDS)}
    one_step(planner, successes)
    one_step(planner, successes)
    asked_again = {prompt for plan in one_step(planner, successes) for prompt, n in plan.items() if n}
    assert {prompt for prompt in asked_again if successes[prompt] == 4} == set()
    assert {prompt for prompt in asked_again if successes[prompt] == 0}
    again = make(evict_from=4)
    again.load_state_dict(planner.state_dict())
    assert_same(snapshot(again), snapshot(planner))
    assert one_step(again, successes) == one_step(planner, successes)


@pytest.mark.parametrize("settings", [{}, {"evict_from": 4, "solved": None}])
def test_small_pilots_evict_nobody(settings):
    planner = make(**settings)
    everywhere = [one_step(planner, dict.fromkeys(IDS, 4)) for _ in range(3)]
    assert all({p for plan in step for p, n in plan.items() if n} == set(IDS) for step in everywhere)


def test_where_all_are_evicted_all_are_asked_again():
    planner = make(evict_from=4)
    one_step(planner, dict.fromkeys(IDS, 4))
    one_step(planner, dict.fromkeys(IDS, 4))
    assert sum(one_step(planner, dict.fromkeys(IDS, 2))[0].values()) == 16


def test_groups_of_a_pilot_alone_are_not_trained_on():
    class Rollouts:
        prompt_ids, rows_N = ("a", "b", "c"), np.array([0] * 4 + [1] * 8 + [2] * 4)

    selection = Committed(pilot=4).select(Rollouts())
    np.testing.assert_array_equal(selection.weights_N, [0] * 4 + [1] * 8 + [0] * 4)
    assert selection.denominator == "kept"


@pytest.mark.parametrize("budget", [16, 19, 129])
def test_a_budget_that_leaves_nothing_to_commit_or_is_above_the_bounds_is_refused(budget):
    with pytest.raises(InfeasibleBudgetError, match="fix: "):
        make().ask(IDS, budget=budget)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"band": (0.0, 0.75)}, "band"),
        ({"band": (0.6, 0.4)}, "band"),
        ({"solved": 0.7}, "solved"),
        ({"draw": 0}, "draw"),
        ({"trained_prompts": 0}, "trained_prompts"),
    ],
)
def test_settings_without_meaning_are_refused(settings, said):
    with pytest.raises(InvalidInputError, match=said):
        make(**settings)
