"""Planner states that somebody changed: flipped bits in the file, and whole files with something else in them."""

import copy

import numpy as np
import pytest
from battery_cases import CASES, World, one_step
from planning_cases import IDS, assert_same, snapshot

from allotment.errors import StateError
from allotment.state import encode_json, load_state, save_state

every_planner = pytest.mark.parametrize("name", CASES)


def busy(name):
    """After two steps, with a plan open and partly told."""
    planner, world = CASES[name].make(), World()
    for _ in range(2):
        one_step(planner, IDS, world)
    plan = planner.ask(IDS)
    told = {column: values[:3] for column, values in world.answer(plan).items()}
    planner.tell(plan, **told, final=False)
    return planner


@every_planner
def test_flipped_bits_are_refused_and_load_nothing(name, tmp_path):
    path = tmp_path / "planner"
    busy(name).save(path)
    data = path.read_bytes()
    fresh = CASES[name].make()
    before = snapshot(fresh)
    for bit in np.random.default_rng(0).choice(8 * len(data), 30, replace=False):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(StateError, match="fix:"):
            fresh.load(path)
    assert_same(snapshot(fresh), before)
    path.write_bytes(data)
    fresh.load(path)


def edits(state):
    """What else could stand in a whole state, and what it is."""
    ((name, entry),) = state["ledger"].items()
    ids = encode_json(dict.fromkeys(map(str, range(len(IDS))), 1))

    def with_ledger(**changes):
        return {**state, "ledger": {name: {**entry, **changes}}}

    step, _, round_ = name.partition(".")
    for spelling in (
        f" {step} . {round_}",
        f"+{step}.{round_}",
        f"0{step}.{round_}",
        f"{step}.{round_} ",
        f"{step}.-1",
    ):
        yield f"the name {spelling!r}", {**state, "ledger": {spelling: entry}}
    yield "ids as a dict", with_ledger(ids=ids)
    yield "ids nested deeply", with_ledger(ids=np.frombuffer(b"[" * 100_000 + b"]" * 100_000, np.uint8))
    yield "ids that are no text", with_ledger(ids=np.full(9, 255, np.uint8))
    for what, changed in {"more": 1000, "very many": 2**62}.items():
        yield f"{what} rollouts", with_ledger(planned=entry["planned"] + (np.arange(len(IDS)) == 0) * changed)
    yield "fewer prompts", with_ledger(planned=entry["planned"][:-1])
    yield "another round", {**state, "ledger": {f"{step}.{int(round_) + 7}": entry}, "step": state["step"]}


@every_planner
def test_whole_states_with_something_else_in_them_are_refused(name):
    planner = busy(name)
    state, loaded = planner.state_dict(), CASES[name].make()
    before = snapshot(loaded)
    for what, edited in edits(copy.deepcopy(state)):
        if what == "another round" and not CASES[name].has_rounds:
            continue  # it is never asked for again, and may be cancelled
        try:
            with pytest.raises(StateError, match="fix:"):
                loaded.load_state_dict(edited)
        except pytest.fail.Exception:
            pytest.fail(f"{what} was loaded")
        assert_same(snapshot(loaded), before, what)
    loaded.load_state_dict(state)
    assert_same(loaded.state_dict(), state)


@pytest.mark.parametrize("value", [1e300, 0.1, np.inf, np.nan])
def test_evidence_that_cannot_be(value, tmp_path):
    path, planner = tmp_path / "planner", busy("vip")
    planner.save(path)
    state = load_state(path, kind="planner")
    belief = state["predictor"]
    while "evidence" not in belief:
        belief = next(part for part in belief.values() if isinstance(part, dict))
    belief["evidence"][0] = value
    save_state(path, state, kind="planner")
    with pytest.raises(StateError, match="evidence"):
        CASES["vip"].make().load(path)
