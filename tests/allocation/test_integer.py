"""The exact allocator against brute force."""

from allotment.allocation import allocate_exact


def test_more_variance_gets_more_rollouts():
    result = allocate_exact([0.25, 0.0, 0.09], 30, lower=3, upper=32)
    assert result.counts.tolist() == [17, 3, 10]
    assert result.budget == 30
    assert result.is_certified
