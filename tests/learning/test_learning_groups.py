import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from allotment.errors import InvalidInputError
from allotment.learning import group


def test_interleaved_by_hand():
    groups = group(torch.tensor([7, -2, 7, 7, 5]))
    values_N = torch.tensor([1.0, 4.0, 2.0, 6.0, 8.0])
    assert groups.ids_Q.tolist() == [-2, 5, 7]
    assert groups.sizes_Q.tolist() == [1, 1, 3]
    assert groups.sizes_per_rollout().tolist() == [3, 1, 3, 3, 1]
    assert groups.sums(values_N).tolist() == [4, 8, 9]
    assert groups.means(values_N).tolist() == [4, 8, 3]
    assert groups.centred(values_N).tolist() == [-2, 0, -1, 3, 0]


@given(st.lists(st.tuples(st.integers(-3, 3), st.floats(-1e3, 1e3)), min_size=1, max_size=30))
def test_means_are_those_of_a_loop(pairs):
    ids, values = zip(*pairs, strict=True)
    groups = group(torch.tensor(ids))
    means_Q = groups.means(torch.tensor(values, dtype=torch.float64))
    for i, mean in zip(groups.ids_Q.tolist(), means_Q.tolist(), strict=True):
        own = [v for j, v in pairs if j == i]
        assert mean == pytest.approx(sum(own) / len(own), abs=1e-9)


@pytest.mark.parametrize("value", [0.1, -7.3, 1e6 + 0.1])
def test_equal_values_are_centred_to_exactly_zero(value):
    groups = group(torch.zeros(7, dtype=torch.int32))
    assert not groups.centred(torch.full((7,), value)).any()


@pytest.mark.parametrize(
    "ids", [torch.zeros(0, dtype=torch.int64), torch.zeros(2, 2, dtype=torch.int64), torch.zeros(2), torch.ones(2) > 0]
)
def test_refuses_ids_that_are_not_an_integer_vector(ids):
    with pytest.raises(InvalidInputError, match="group ids"):
        group(ids)
