"""What a selector says must fit the rollouts it was shown, whoever made it."""

import numpy as np
import pytest
from selection_cases import scored

from allotment.errors import InvalidInputError
from allotment.selection import Selection, check_selection

TWO = scored([[1, 0]])
ONES = np.ones(2)


@pytest.mark.parametrize("wrong", [np.ones(3), np.ones(1), np.ones((2, 1)), np.array([1.0, np.nan])])
@pytest.mark.parametrize("column", ["weights", "advantages", "rewards"])
def test_a_selection_that_does_not_fit_is_refused(column, wrong):
    selection = Selection(**{"weights_N": ONES, f"{column}_N": wrong})
    with pytest.raises(InvalidInputError, match=f"{column} of a selection") as caught:
        check_selection(selection, TWO)
    assert "fix:" in str(caught.value)


def test_negative_weights_alone_are_refused():
    with pytest.raises(InvalidInputError, match="weights of a selection"):
        check_selection(Selection(np.array([1.0, -1e-9])), TWO)
    fine = Selection(ONES, -ONES, -ONES)
    assert check_selection(fine, TWO) is fine
