"""The geometric median: by hand, at its minimum, and unmoved by 40 % outliers however far away."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flexlora_server.aggregation.filters import geometric_median
from flexlora_server.aggregation.filters.geometric_median import GeometricMedian, weiszfeld
from tests.server.aggregation.filters.rounds import equal, gathered, of_vectors

MEDIAN = GeometricMedian()


def mean(weights: tuple[float, ...] | list[float], changes: list[list[float]]) -> torch.Tensor:
    return torch.tensor(weights, dtype=torch.float64) @ torch.tensor(changes, dtype=torch.float64)


def test_on_a_line_it_is_the_median() -> None:
    changes = [[0.0], [1.0], [100.0]]
    assert float(mean(MEDIAN.apply(equal(3), of_vectors(changes), ()).weights, changes)) == pytest.approx(1.0, abs=1e-4)


def test_of_a_triangle_it_sees_every_side_at_120_degrees() -> None:
    """The Fermat point of (0, 0), (4, 0), (0, 4) is at x = y = 2 - 2 / sqrt(3)."""
    changes = [[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]]
    v = mean(MEDIAN.apply(equal(3), of_vectors(changes), ()).weights, changes)
    assert v.tolist() == pytest.approx([2 - 2 / 3**0.5] * 2, abs=1e-6)


def test_weights_count() -> None:
    """Who claims more than half of the examples is the median."""
    changes = [[0.0, 1.0], [5.0, 0.0], [0.0, 7.0]]
    v = mean(MEDIAN.apply([0.2, 0.6, 0.2], of_vectors(changes), ()).weights, changes)
    assert v.tolist() == pytest.approx([5.0, 0.0], abs=1e-3)


@given(seed=st.integers(0, 1000), far=st.sampled_from([1e1, 1e3, 1e6, 1e12]))
def test_it_resists_40_percent_outliers(seed: int, far: float) -> None:
    changes = gathered(12, 8, [-far, far, 0.0], seed)
    verdict = MEDIAN.apply(equal(20), of_vectors(changes), ())
    honest = mean(equal(12), changes[:12])
    assert float((mean(verdict.weights, changes) - honest).norm()) < 0.35  # the honest lie 0.17 from their mean
    assert all("in the geometric median" in note for note in verdict.notes[12:])


@given(seed=st.integers(0, 1000))
def test_nothing_near_is_closer_to_all(seed: int) -> None:
    changes = gathered(7, 2, [3.0, -3.0, 1.0], seed)
    D = torch.tensor(changes, dtype=torch.float64)
    v = mean(MEDIAN.apply(equal(9), of_vectors(changes), ()).weights, changes)
    least = float((D - v).norm(dim=1).sum())
    for step in torch.eye(3).double():
        for size in (1e-2, -1e-2):
            assert float((D - v - size * step).norm(dim=1).sum()) > least - 1e-9


def test_equal_changes_keep_their_weights() -> None:
    weights = [0.5, 0.3, 0.2]
    for changes in ([[1.0, 2.0]] * 3, [[0.0, 0.0]] * 3):
        coefficients, distances = weiszfeld(weights, of_vectors(changes).inner)
        assert coefficients == pytest.approx(weights, rel=1e-6)
        assert distances == pytest.approx([0.0] * 3, abs=1e-7)


def test_of_two_the_heavier_is_the_median_and_equal_ones_keep_their_weights() -> None:
    changes = of_vectors([[0.0, 3.0], [4.0, 0.0]]).inner
    assert weiszfeld([0.5, 0.5], changes)[0] == pytest.approx([0.5, 0.5], abs=1e-12)
    assert weiszfeld([0.51, 0.49], changes)[0] == pytest.approx([1.0, 0.0], abs=2e-6)


@pytest.mark.parametrize("weights", [[0.51, 0.49], [0.2, 0.6, 0.2], [0.3, 0.3, 0.4], [0.45, 0.1, 0.45]])
def test_more_iterations_converge_to_the_same(weights: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """To its last digits: what is smoothed does not depend on how far the iteration has come."""
    inner = of_vectors([[0.0, 3.0], [4.0, 0.0], [1.0, 1.0]][: len(weights)]).inner
    monkeypatch.setattr(geometric_median, "_CONVERGED", 0.0)
    found = []
    for iterations in (1000, 3000):
        monkeypatch.setattr(geometric_median, "_ITERATIONS", iterations)
        found.append(weiszfeld(weights, inner)[0])
    assert found[1] == pytest.approx(found[0], rel=1e-9)


def test_whoever_counts_far_less_is_told() -> None:
    verdict = MEDIAN.apply(equal(5), of_vectors([[0.0, 1.0], [1.0, 0.0], [0.0, -1.0], [-1.0, 0.0], [50.0, 0.0]]), ())
    assert verdict.notes[0] == ""
    assert verdict.notes[4].startswith("counts 0.00")
    assert "instead of 0.2 in the geometric median (distance 49.4, the median distance is 1.15)" in verdict.notes[4]
