"""Reading learning curves: by hand, and what holds for all of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from allotment.compare.figures import difference_at_common_end, first_reach, value_at

X = np.array([0.0, 100.0, 300.0])
Y = np.array([0.2, 0.4, 0.3])


@pytest.mark.parametrize(
    ("x", "value"), [(0, 0.2), (50, 0.3), (100, 0.4), (200, 0.35), (300, 0.3), (300.1, None), (-0.1, None)]
)
def test_between_evaluations_and_never_beyond(x, value):
    assert value_at(X, Y, x) == (None if value is None else pytest.approx(value))


@pytest.mark.parametrize(
    ("target", "x"), [(0.1, 0), (0.2, 0), (0.25, 25), (0.35, 75), (0.4, 100), (0.41, None)]
)  # 0.35 is crossed twice: on the way up
def test_first_reach(target, x):
    assert first_reach(X, Y, target) == (None if x is None else pytest.approx(x))


def test_difference_where_the_shorter_ends():
    x, difference = difference_at_common_end(X, Y, np.array([0.0, 200.0]), np.array([0.2, 0.25]))
    assert (x, difference) == (200, pytest.approx(0.35 - 0.25))


def test_curves_that_do_not_overlap():
    assert difference_at_common_end(X, Y, X + 400, Y) is None
    assert difference_at_common_end(X, Y, X[:0], Y[:0]) is None
    assert first_reach(X[:0], Y[:0], 0.0) is None


@st.composite
def curves(draw):
    """[E] x from 0, strictly ascending, and [E] success."""
    steps = draw(st.lists(st.integers(1, 10_000), min_size=1, max_size=8))
    x_E = np.concatenate([[0.0], np.cumsum(steps, dtype=np.float64)])
    y_E = draw(st.lists(st.floats(0, 1), min_size=len(x_E), max_size=len(x_E)))
    return x_E, np.array(y_E)


@given(curves(), curves())
def test_a_difference_changes_its_sign_with_the_order(a, b):
    there, back = difference_at_common_end(*a, *b), difference_at_common_end(*b, *a)
    assert there == (back[0], -back[1])


@given(curves(), curves(), st.integers(-10, 10).map(lambda k: 2.0**k), st.floats(0, 1))
def test_the_unit_of_the_axis_does_not_matter(a, b, unit, target):
    (x, y), (other_x, other_y) = a, b
    at, difference = difference_at_common_end(x, y, other_x, other_y)
    scaled_at, scaled = difference_at_common_end(unit * x, y, unit * other_x, other_y)
    assert (scaled_at, scaled) == (pytest.approx(unit * at), pytest.approx(difference, abs=1e-12))
    reached = first_reach(x, y, target)
    assert first_reach(unit * x, y, target) == (None if reached is None else pytest.approx(unit * reached))


@given(curves(), st.floats(0, 1))
def test_the_curve_is_at_the_target_where_it_first_reaches_it_and_below_before(curve, target):
    x_E, y_E = curve
    x = first_reach(x_E, y_E, target)
    if x is None:
        assert y_E.max() < target
        return
    assert value_at(x_E, y_E, x) >= target - 1e-9
    assert all(y_E[x_E < x] < target)


@given(curves(), st.floats(0, 1), st.floats(0, 1))
def test_on_a_rising_curve_more_is_later_and_reading_inverts_reaching(curve, a, b):
    x_E, y_E = curve[0], np.sort(curve[1])
    first, second = (first_reach(x_E, y_E, target) for target in sorted((a, b)))
    assert second is None or first <= second
    values = [value_at(x_E, y_E, x) for x in np.linspace(0, x_E[-1], 20)]
    assert np.all(np.diff(values) >= -1e-12)
