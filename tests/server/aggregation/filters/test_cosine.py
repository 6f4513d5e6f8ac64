"""The cosine filter: by hand, without a direction, and when nobody agrees with it."""

import pytest

from flexlora_server.aggregation.filters.cosine import Cosine
from tests.server.aggregation.filters.rounds import equal, of_vectors

CHANGES = [[2.0, 0.0], [3.0, 3.0], [0.0, 5.0], [-1.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize(
    ("minimum", "kept"),
    [(-1.0, (1, 1, 1, 1, 1)), (-0.5, (1, 1, 1, 0, 1)), (0.0, (1, 1, 1, 0, 1)), (0.5, (1, 1, 0, 0, 1))],
)
def test_by_hand(minimum: float, kept: tuple[int, ...]) -> None:
    """One that changed nothing has no direction, and stays."""
    verdict = Cosine(minimum).apply(equal(5), of_vectors(CHANGES, [10.0, 0.0]), ())
    assert verdict.weights == pytest.approx(tuple(one / sum(kept) for one in kept))
    assert [bool(note) for note in verdict.notes] == [not one for one in kept]
    if not kept[3]:
        assert verdict.notes[3] == f"dropped by cosine: -1 to the last round's change, asked is {minimum:.2g}"


@pytest.mark.parametrize("previous", [None, [0.0, 0.0]])
def test_without_a_last_change_everybody_passes_and_nothing_is_said(previous: list[float] | None) -> None:
    verdict = Cosine(1.0).apply(equal(5), of_vectors(CHANGES, previous), ())
    assert (verdict.weights, verdict.notes) == (tuple(equal(5)), ("",) * 5)


def test_nobody_may_be_left() -> None:
    assert Cosine(0.5).apply(equal(2), of_vectors([[-1.0], [-2.0]], [1.0]), ()).weights == (0.0, 0.0)
