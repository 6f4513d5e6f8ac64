"""Multi-Krum: scores by hand, outliers dropped, and rounds too small for it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flexlora_server.aggregation.filters.multi_krum import MultiKrum, scores, squared_distances
from tests.server.aggregation.filters.rounds import equal, gathered, of_vectors


def test_scores_by_hand() -> None:
    """On a line at 0, 1, 3, 7, 100, with f = 1: the two nearest of each."""
    distances = squared_distances(of_vectors([[0.0], [1.0], [3.0], [7.0], [100.0]]).inner)
    assert distances[0].tolist() == [0.0, 1.0, 9.0, 49.0, 10_000.0]
    assert scores(distances, 1) == [10.0, 5.0, 13.0, 52.0, 97.0**2 + 93.0**2]


def test_by_hand() -> None:
    verdict = MultiKrum(0.2).apply([0.1, 0.2, 0.3, 0.2, 0.2], of_vectors([[0.0], [1.0], [3.0], [7.0], [100.0]]), ())
    assert verdict.weights == pytest.approx((0.125, 0.25, 0.375, 0.25, 0.0))
    assert verdict.factors == (1.0,) * 5
    assert verdict.notes[:4] == ("",) * 4
    assert verdict.notes[4] == "dropped by multi-krum: score 1.8e+04, the largest kept is 52"


@given(seed=st.integers(0, 1000), hostile=st.integers(0, 6))
def test_outliers_are_dropped_even_if_they_agree(seed: int, hostile: int) -> None:
    changes = gathered(20 - hostile, hostile, [-3.0, 1.0, 0.0, 0.0], seed)
    verdict = MultiKrum(0.3).apply(equal(20), of_vectors(changes), ())
    assert sum(weight > 0 for weight in verdict.weights) == 14
    assert verdict.weights[20 - hostile :] == (0.0,) * hostile


@pytest.mark.parametrize(("share", "dropped"), [(0.15, 3), (0.16, 4), (0.01, 1), (0.4, 8)])
def test_the_share_is_rounded_up_but_not_by_rounding(share: float, dropped: int) -> None:
    verdict = MultiKrum(share).apply(equal(20), of_vectors(gathered(20, 0, [0.0, 0.0])), ())
    assert verdict.weights.count(0.0) == dropped


@pytest.mark.parametrize(("count", "dropped"), [(1, 0), (2, 0), (3, 0), (4, 0), (5, 1), (6, 1), (7, 2)])
def test_a_small_round_keeps_what_it_must_and_says_so(count: int, dropped: int) -> None:
    """N >= 2f + 3."""
    verdict = MultiKrum(0.49).apply(equal(count), of_vectors(gathered(count, 0, [0.0, 0.0])), ())
    assert verdict.weights.count(0.0) == dropped
    for weight, note in zip(verdict.weights, verdict.notes, strict=True):
        assert weight == 0 or note.startswith(f"multi-krum could assume {dropped} byzantine of {count} updates, not ")


def test_equal_scores_keep_the_earlier() -> None:
    assert MultiKrum(0.2).apply(equal(5), of_vectors([[1.0]] * 5), ()).weights == (0.25,) * 4 + (0.0,)


def test_distances_are_never_negative() -> None:
    inner = torch.tensor([[1.0, 1.0 + 1e-15], [1.0 + 1e-15, 1.0]]).double()
    assert bool((squared_distances(inner) >= 0).all())
