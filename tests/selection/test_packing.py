"""Dense prompt packing (Dynamic Pruning, arXiv 2603.04135): it changes no gradient, and what the greedy rule says."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from allotment.errors import InvalidInputError
from allotment.learning import rloo_advantages, rollout_weights
from allotment.methods.selectors.packing import pack

lengths = st.lists(st.integers(1, 20), max_size=40)


def next_fit(tokens, cap):
    """First-come: a group that does not fit opens a new micro-batch."""
    batches = []
    for group, length in enumerate(tokens):
        if not batches or sum(tokens[g] for g in batches[-1]) + length > cap:
            batches.append([])
        batches[-1].append(group)
    return tuple(map(tuple, batches))


@given(tokens=lengths, cap=st.integers(20, 60), window=st.integers(1, 50))
def test_every_group_once_below_the_cap_and_not_too_late(tokens, cap, window):
    packing = pack(tokens, cap, window=window)
    taken = [group for batch in packing.batches for group in batch]
    assert sorted(taken) == list(range(len(tokens)))
    assert all(packing.batches)
    assert packing.tokens == tuple(sum(tokens[g] for g in batch) for batch in packing.batches)
    assert max(packing.tokens, default=0) <= cap
    late = [place - group for place, group in enumerate(taken)]
    assert max(late, default=0) <= window
    assert min(late, default=0) > -window  # what is not in the window yet is not taken
    bound = sum(tokens) / cap
    assert bound <= len(packing.batches) <= 2 * bound + 1  # two neighbours hold more than one cap
    assert packing.fill_rate == pytest.approx(bound / max(len(packing.batches), 1) if tokens else 1.0)


@given(tokens=lengths, cap=st.integers(20, 60))
def test_a_window_of_one_is_first_come(tokens, cap):
    assert pack(tokens, cap, window=1).batches == next_fit(tokens, cap)


@given(tokens=lengths, cap=st.integers(20, 60), window=st.integers(1, 50))
def test_a_micro_batch_is_closed_only_where_nothing_in_the_window_fits(tokens, cap, window):
    """Of the groups in the window the longest that fits is taken, unless the oldest has waited too long."""
    taken, left = [], 0
    for batch in pack(tokens, cap, window=window).batches:
        room = cap
        for position, group in enumerate(batch):
            waiting = [g for g in range(len(tokens)) if g not in taken][:window]
            if len(taken) - waiting[0] >= window:
                assert group == waiting[0]
            else:
                assert tokens[group] == max(tokens[g] for g in waiting if tokens[g] <= room)
            if position == 0 and taken:
                due = waiting[:1] if len(taken) - waiting[0] >= window else waiting
                assert min(tokens[g] for g in due) > left
            taken.append(group)
            room -= tokens[group]
        left = room


@pytest.mark.parametrize(
    ("window", "expected", "fill_rate"),
    [
        (1, ((0,), (1,), (2,), (3,), (4, 5)), 0.6),
        (2, ((1,), (0, 2), (3, 5), (4,)), 0.75),
        (6, ((3, 5), (1, 4), (0, 2)), 1.0),
    ],
)
def test_by_hand(window, expected, fill_rate):
    packing = pack([6, 7, 4, 8, 3, 2], 10, window=window)
    assert packing.batches == expected
    assert packing.fill_rate == fill_rate


def test_a_group_that_waits_in_vain_is_taken_when_its_time_has_come():
    """The window always holds a longer group that fits than the first one, of 4 tokens."""
    packing = pack([4, *[5] * 20], 10, window=3)
    taken = [group for batch in packing.batches for group in batch]
    assert taken.index(0) == 3
    assert pack([4, *[5] * 20], 10, window=30).batches[-1] == (0,)


def test_the_gradient_does_not_depend_on_the_packing():
    """Weights of the whole batch, sliced with the groups: the micro-batches' gradients add up to the batch's."""
    rng = np.random.default_rng(0)
    sizes_Q = rng.integers(2, 6, 12)
    group_ids_N = torch.tensor(np.repeat(np.arange(12), sizes_Q))
    lengths_N = rng.integers(1, 30, len(group_ids_N))
    mask_NT = torch.arange(30) < torch.tensor(lengths_N)[:, None]
    rewards_N = torch.tensor(rng.integers(0, 2, len(group_ids_N)), dtype=torch.float64)
    terms_NT = rloo_advantages(rewards_N, group_ids_N)[:, None] * torch.tensor(rng.normal(size=mask_NT.shape))
    weights_NT = rollout_weights(group_ids_N, mask_NT, dtype=torch.float64)
    whole = (weights_NT * terms_NT).sum()
    tokens_Q = np.bincount(group_ids_N, lengths_N).astype(int)
    for window in (1, 4, 12):
        batches = pack(tokens_Q, 200, window=window).batches
        rows = [torch.isin(group_ids_N, torch.tensor(batch)) for batch in batches]
        parts = [(weights_NT[row] * terms_NT[row]).sum() for row in rows]
        torch.testing.assert_close(torch.stack(parts).sum(), whole)
        assert len(batches) > 1


@pytest.mark.parametrize(
    ("tokens", "window", "problem"),
    [
        ([5, 11], 4, "group 1 does not fit.*\n.*11 tokens\n.*1 to 10"),
        ([5, 0], 4, "group 1 does not fit"),
        ([5], 0, "window"),
    ],
)
def test_what_cannot_be_packed_is_refused(tokens, window, problem):
    with pytest.raises(InvalidInputError, match=problem):
        pack(tokens, 10, window=window)
