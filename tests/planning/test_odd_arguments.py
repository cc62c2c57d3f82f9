"""Arguments that are not what they should be, for every planner: the library's own error says what is allowed, and
nothing changes. One check in the base class; nothing of numpy's or Python's own comes through.
"""

import datetime
import warnings
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from battery_cases import CASES, World, one_step
from planning_cases import EMBEDDED, IDS, assert_same, snapshot

from allotment import VIP
from allotment.errors import AllotmentError, InvalidInputError
from allotment.prediction import GaussianProcess, HierarchicalRegression

every_planner = pytest.mark.parametrize("name", CASES)


class Odd:
    """An object that cannot even be shown."""

    def __repr__(self):
        raise RuntimeError("no")


NOT_WHOLE = {
    "str": "75", "bytes": b"75", "list": [75], "tuple": (75,), "dict": {75: 75}, "set": {75}, "complex": 75j,
    "true": True, "numpy true": np.True_, "nan": float("nan"), "inf": float("inf"), "1e30": 1e30, "float": 75.0,
    "numpy float": np.float64(75), "too large": 10**30, "too long": 10**5000, "array": np.array(75),
    "array of one": np.array([75]), "object": Odd(), "class": int, "decimal": Decimal(75), "fraction": Fraction(75),
    "time": np.timedelta64(75), "date": datetime.date(2026, 1, 1),
}  # fmt: skip
BAD_BOUNDS = {
    "text": "ab", "whole": 5, "one": (3,), "three": (3, 4, 5), "texts": ("3", "10"), "floats": (3.0, 10.0),
    "dict": {3: 1, 10: 2}, "set": {3, 10}, "nothing in it": (None, None), "true": (True, 10), "1e30": (3, 1e30),
    "negative": (-1, 4), "swapped": (10, 3), "too large": (3, 10**30), "object": Odd(),
}  # fmt: skip
BAD_IDS = {
    "none": None, "whole": 5, "float": 5.0, "true": True, "text": "abc", "bytes": b"abc",
    "set": {"a", "b"}, "frozen set": frozenset("ab"), "floats": [1.5], "none in it": ["a", None], "true in it": [True],
    "bytes in it": [b"a"], "complex in it": [1j], "nested": [["a"]], "dict in it": [{}], "array": np.array(5),
    "two dimensions": np.array([[1, 2]]), "float array": np.array([1.0]), "bool array": np.array([True]),
    "times": np.array([3], "m8[s]"), "time": [np.timedelta64(3)], "dates": np.array(["2020"], "M8[D]"), "object": Odd(),
    "object in it": [Odd()], "nan": [float("nan")], "bytes array": np.array([b"a"]), "decimal": [Decimal(1)],
}  # fmt: skip
BAD_COLUMNS = {
    "complex": lambda r: replaced(r, 1j), "complex array": lambda r: np.array(r) + 0j,
    "numpy complex": lambda r: replaced(r, np.complex64(1)), "texts": lambda r: [str(x) for x in r],
    "text": lambda r: replaced(r, "1.0"), "text array": lambda r: np.array(r).astype(str),
    "text in objects": lambda r: np.array(replaced(r, "1.0"), dtype=object),
    "bytes in objects": lambda r: np.array(replaced(r, b"1"), dtype=object),
    "complex in objects": lambda r: np.array(replaced(r, 1j), dtype=object), "bytes": lambda r: b"1" * len(r),
    "one text": lambda r: "1" * len(r), "object": lambda r: replaced(r, Odd()), "ragged": lambda r: replaced(r, [1, 2]),
    "nan": lambda r: replaced(r, float("nan")), "none": lambda r: replaced(r, None),
    "too large": lambda r: replaced(r, 10**400), "dates": lambda r: np.zeros(len(r), "M8[D]"),
    "times": lambda r: np.zeros(len(r), "m8[s]"), "dict": lambda r: dict(enumerate(r)), "set": set, "iterator": iter,
    "masked": lambda r: np.ma.array(r, mask=[True] + [False] * (len(r) - 1)),
    "structured": lambda r: np.zeros(len(r), [("a", float)]), "cube": lambda r: np.ones((len(r), 1, 1)),
    "short": lambda r: r[:-1], "number": lambda r: 1.0,
}  # fmt: skip
BAD_ANSWERS = {
    "whole": lambda n: 5, "text": lambda n: "a" * n, "bytes": lambda n: b"a" * n, "wholes": lambda n: [1] * n,
    "array": np.zeros, "dict": lambda n: {str(i): 1 for i in range(n)}, "set": lambda n: {str(i) for i in range(n)},
    "object": lambda n: Odd(), "objects": lambda n: [Odd()] * n, "short": lambda n: ["a"],
}  # fmt: skip


def replaced(values, value):
    return [value, *values[1:]]


def assert_refused(call, what, planner=None):
    before = None if planner is None else snapshot(planner)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            with pytest.raises(AllotmentError, match=r"allowed: .(.|\n)*fix: +."):
                call()
        except pytest.fail.Exception:
            pytest.fail(f"{what} was accepted")
        except Exception as error:
            raise AssertionError(what) from error
    if planner is not None:
        assert_same(snapshot(planner), before, what)


@every_planner
def test_what_a_planner_is_made_with(name):
    make = CASES[name].make
    for setting, values in {"budget": NOT_WHOLE, "seed": NOT_WHOLE, "bounds": BAD_BOUNDS}.items():
        for what, value in values.items():
            assert_refused(lambda given={setting: value}: make(**given), f"{setting}: {what}")
    for value in (5, None, [1], b"rloo", np.array(1), Odd(), "nope"):
        assert_refused(lambda given=value: make(estimator=given), f"estimator of type {type(value)}")


@every_planner
def test_what_a_planner_is_asked(name):
    planner = CASES[name].make()
    one_step(planner, IDS, World())
    for what, value in NOT_WHOLE.items():
        assert_refused(lambda budget=value: planner.ask(IDS, budget=budget), f"budget: {what}", planner)
    for what, value in {**BAD_IDS, "too long": [10**5000]}.items():
        assert_refused(lambda ids=value: planner.ask(ids), f"ids: {what}", planner)


@every_planner
def test_what_a_planner_is_told(name):
    planner, world = CASES[name].make(), World()
    one_step(planner, IDS, world)
    plan = planner.ask(IDS)
    told = world.answer(plan)
    rewards = told["rewards"]
    for value in (None, 5, "plan", Odd(), plan.counts, (plan,), [plan], {}, vars(plan), type(plan)):
        assert_refused(lambda plan=value: planner.tell(plan, **told), f"plan of type {type(value)}", planner)
        assert_refused(lambda plan=value: planner.cancel(plan), f"cancelled, of type {type(value)}", planner)
    odd = [(column, what, make(rewards)) for column in COLUMNS for what, make in BAD_COLUMNS.items()]
    odd += [("answers", what, make(len(rewards))) for what, make in BAD_ANSWERS.items()]
    odd += [("group_ids", what, ids) for what, ids in BAD_IDS.items()]
    for column, what, value in odd:
        given = {**told, column: value}
        for final in (True, False):
            assert_refused(
                lambda given=given, final=final: planner.tell(plan, **given, final=final), f"{column}: {what}", planner
            )
    planner.tell(plan, **told)


COLUMNS = ("rewards", "lengths", "scores")


@every_planner
@pytest.mark.parametrize("kind", [np.int8, np.int32, np.uint16, np.int64])
def test_whole_numbers_of_numpy_are_as_good_as_ints(name, kind):
    case = CASES[name]
    plain, theirs = case.make(), case.make(seed=kind(0), bounds=tuple(map(kind, case.bounds)))
    assert_same(plain.state_dict(), theirs.state_dict())
    budget = min(case.budget, 120)
    plans = plain.ask(IDS, budget=budget), theirs.ask(IDS, budget=kind(budget))
    np.testing.assert_array_equal(plans[0].counts, plans[1].counts)


BAD_VECTORS = {
    "complex": EMBEDDED["embeddings"] + 0j, "texts": EMBEDDED["embeddings"].astype(str),
    "text objects": EMBEDDED["embeddings"].astype(str).astype(object), "bytes": EMBEDDED["embeddings"].astype("S"),
    "ragged": [[1.0], *[[1.0, 2.0]] * (len(IDS) - 1)], "dates": np.zeros((len(IDS), 2), "M8[D]"), "text": "abc",
    "nan": np.full((len(IDS), 2), np.nan), "one": 1.0, "objects": [[Odd(), 1.0]] * len(IDS),
    "masked": np.ma.masked_less(EMBEDDED["embeddings"], 0.0), "too large": [[10**400]] * len(IDS),
    "structured": np.zeros((len(IDS), 1), [("a", float)]), "none": [[None, 1.0]] * len(IDS),
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.is_embedded] + ["vip", "joint"])
def test_embeddings_of_odd_types(name):
    case = CASES[name]
    for what, vectors in BAD_VECTORS.items():
        assert_refused(lambda v=vectors: case.make(embeddings=v, ids=IDS), f"embeddings: {what}")
    for what, ids in BAD_IDS.items():
        if what != "none":
            assert_refused(lambda i=ids: case.make(embeddings=EMBEDDED["embeddings"], ids=i), f"ids: {what}")


@pytest.mark.parametrize("make", [HierarchicalRegression, GaussianProcess])
def test_prompts_registered_later(make):
    predictor = make(EMBEDDED["embeddings"], ids=IDS)
    before = predictor.state_dict()
    for what, vectors in BAD_VECTORS.items():
        ids = [f"late {i}" for i in range(len(IDS))]
        assert_refused(lambda v=vectors, i=ids: predictor.register(i, v), f"embeddings: {what}")
    assert_same(predictor.state_dict(), before)


def test_numbers_of_any_real_make_are_read():
    """What numpy reads as real numbers without loss."""
    rewards = [1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0]
    makes = [np.array, np.float16, np.float32, lambda r: np.array(r, dtype=bool), lambda r: np.array(r, dtype=object)]
    makes += [lambda r: np.ma.array(r), lambda r: [np.float32(x) for x in r], lambda r: [Decimal(x) for x in r]]
    for make in (*makes, lambda r: [Fraction(x) for x in r], tuple, lambda r: [np.array(x) for x in r]):
        planner = VIP(budget=8)
        plan = planner.ask(["a", "b"])
        outcome = planner.tell(plan, make(rewards), plan.group_ids())
        assert outcome.rewards_N.tolist() == rewards
        assert outcome.rewards_N.dtype == np.float64


def test_a_value_that_cannot_be_shown_is_named_by_its_type():
    with pytest.raises(InvalidInputError, match="a value of type Odd"):
        VIP(budget=Odd())
    with pytest.raises(InvalidInputError, match="a value of type int"):
        VIP(budget=10**5000)
