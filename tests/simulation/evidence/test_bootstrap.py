"""Intervals of paired differences."""

from flexlora_simulation.evidence.bootstrap import paired


def test_an_interval_of_paired_differences() -> None:
    found = paired([1.0, 3.0, 2.0, 4.0], [0.0, 0.0, 0.0, 0.0])
    assert (found.mean, 1.0 <= found.low < 2.0, 3.0 < found.high <= 4.0) == (2.5, True, True)
    assert str(paired([2.0], [1.0])) == "+1.0 [+1.0, +1.0]"
