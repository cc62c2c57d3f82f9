"""A budget carried over pieces of any size: exact over every block, within bounds, and still adaptive."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from allotment.errors import DuplicatePromptError, InvalidInputError, StateError
from allotment.planning import VIP, Uniform
from allotment.planning.carry_over import CarryOver
from allotment.types import Plan

sizes = st.lists(st.integers(1, 19), min_size=1, max_size=12)


def told(planner: VIP | Uniform, plan: Plan, p_of: np.ndarray, random: np.random.Generator) -> None:
    groups = plan.group_ids()
    planner.tell(plan, random.random(len(groups)) < p_of[np.array(groups)], groups)


@given(sizes, st.integers(1, 8), st.integers(2, 4), st.data())
def test_every_block_spends_exactly_its_budget_whatever_the_pieces(pieces, block, lower, data) -> None:
    upper = data.draw(st.integers(lower, 12))
    budget = data.draw(st.integers(lower * block, upper * block))
    planner = VIP(budget=budget, bounds=(lower, upper))
    carry, random = CarryOver(planner, prompts=block), np.random.default_rng(sum(pieces))
    p_of = random.choice([0.0, 0.1, 0.5, 1.0], size=40)
    counts: list[int] = []
    for size in pieces:
        ids = random.choice(40, size=size, replace=False).tolist()
        plans = carry.ask(ids)
        assert [i for plan in plans for i in plan.prompt_ids] == ids
        for plan in plans:
            counts += plan.counts.tolist()
            told(planner, plan, p_of, random)
    whole = len(counts) // block * block
    assert all(lower <= count <= upper for count in counts)
    assert (np.reshape(counts[:whole], (-1, block)).sum(axis=1) == budget).all()
    assert carry.left == (budget - sum(counts[whole:]), block - (len(counts) - whole))


def test_a_whole_batch_gets_the_planners_own_plan() -> None:
    alone, carried = VIP(budget=64), CarryOver(VIP(budget=64), prompts=8)
    for start in range(3):
        (plan,) = carried.ask(range(start * 8, start * 8 + 8))
        np.testing.assert_array_equal(plan.counts, alone.ask(range(start * 8, start * 8 + 8)).counts)


def test_prompts_that_come_one_by_one_still_get_what_they_are_worth() -> None:
    planner = VIP(budget=128, bounds=(3, 32))
    carry, random = CarryOver(planner, prompts=16), np.random.default_rng(0)
    p_of = np.where(np.arange(64) % 2, 0.5, 0.0)
    spent = np.zeros(64)
    for epoch in range(4):
        for prompt in random.permutation(64).tolist():
            (plan,) = carry.ask([prompt])
            spent[prompt] += plan.budget * (epoch > 0)
            told(planner, plan, p_of, random)
    assert spent.sum() == 3 * 64 * 8
    assert spent[1::2].mean() > 1.5 * spent[::2].mean()


def test_resuming_in_the_middle_of_a_block_gives_the_same_plans() -> None:
    first = CarryOver(VIP(budget=64), prompts=8)
    first.ask(range(13))
    second = CarryOver(VIP(budget=64), prompts=8)
    second.load_state_dict(first.state_dict())
    second.planner.load_state_dict(first.planner.state_dict())
    for ids in ([20], [21, 22], range(23, 40)):
        for one, other in zip(first.ask(ids), second.ask(ids), strict=True):
            np.testing.assert_array_equal(one.counts, other.counts)


def test_an_error_spends_nothing() -> None:
    carry = CarryOver(Uniform(budget=64), prompts=8)
    carry.ask(range(3))
    left = carry.left
    with pytest.raises(DuplicatePromptError):
        carry.ask([5, 6, 5])
    assert carry.left == left
    assert len(carry.planner.open_plans) == 1


def test_bounds_and_states_that_cannot_be_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="from 24 to 256"):
        CarryOver(Uniform(budget=20), prompts=8)
    state = CarryOver(Uniform(budget=64), prompts=8).state_dict()
    with pytest.raises(StateError, match="blocks of 4"):
        CarryOver(Uniform(budget=64), prompts=4).load_state_dict(state)
    with pytest.raises(StateError, match="9999 rollouts left"):
        CarryOver(Uniform(budget=64), prompts=8).load_state_dict({**state, "budget": 9999})
