"""Norm clipping: by hand, never beyond the bound, and a bound that a minority cannot move."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexlora_server.aggregation.filters.norm_clip import FixedBound, RunningBound, round_norm
from tests.server.aggregation.filters.rounds import equal, of_vectors


def test_by_hand() -> None:
    verdict = FixedBound(2.5).apply(equal(3), of_vectors([[3.0, 4.0], [0.0, 2.0], [0.0, 0.0]]), ())
    assert verdict.factors == (0.5, 1.0, 1.0)
    assert verdict.weights == tuple(equal(3))
    assert verdict.notes == ("clipped to 0.5 of its change (norm 5, bound 2.5)", "", "")


def test_the_running_bound_is_a_multiple_of_the_lower_median() -> None:
    geometry = of_vectors([[1.0], [2.0], [3.0], [400.0]])
    assert RunningBound(1.5, 0).apply(equal(4), geometry, (9e9,)).factors == (1.0, 1.0, 1.0, 3 / 400)
    assert round_norm(geometry.norms) == 2.0


def test_past_rounds_have_a_vote_each_as_many_as_asked() -> None:
    geometry = of_vectors([[100.0], [100.0], [1.0]])  # liars in the majority
    assert RunningBound(1.0, 3).apply(equal(3), geometry, (1e6, 1.0, 1.0, 1.0)).factors[0] == 0.01
    assert RunningBound(1.0, 1).apply(equal(3), geometry, (1.0, 1.0, 1.0)).factors[0] == 0.01
    assert RunningBound(1.0, 0).apply(equal(3), geometry, (1.0, 1.0, 1.0)).factors[0] == 1.0


@given(
    honest=st.lists(st.floats(0.1, 10), min_size=1, max_size=9),
    past=st.lists(st.floats(0.1, 10), max_size=5),
    boost=st.sampled_from([0.0, 1e-6, 1e3, 1e12]),
    data=st.data(),
)
def test_fewer_than_half_of_the_votes_cannot_move_the_bound(
    honest: list[float], past: list[float], boost: float, data: st.DataObject
) -> None:
    """Whatever they send, the bound stays within the honest norms, of now and before."""
    liars = data.draw(st.integers(0, len(honest) + len(past) - 1))
    norms = [*honest, *[boost] * liars]
    verdict = RunningBound(1.0, 5).apply(equal(len(norms)), of_vectors([[norm] for norm in norms]), past)
    after = [norm * factor for norm, factor in zip(norms, verdict.factors, strict=True)]
    assert max(after) <= max(honest + past) * (1 + 1e-12)
    for norm, length in zip(norms, after, strict=True):
        assert length >= min(norm, *honest, *past) * (1 - 1e-12)


@given(norms=st.lists(st.floats(0, 1e12), min_size=1, max_size=9), bound=st.floats(1e-6, 1e12))
def test_no_change_stays_longer_than_the_bound(norms: list[float], bound: float) -> None:
    verdict = FixedBound(bound).apply(equal(len(norms)), of_vectors([[norm] for norm in norms]), ())
    for norm, factor in zip(norms, verdict.factors, strict=True):
        assert norm * factor <= bound * (1 + 1e-12)
        assert factor == pytest.approx(1.0) or norm * factor == pytest.approx(bound)


def test_a_round_in_which_nobody_learned_passes() -> None:
    assert RunningBound(1.0, 0).apply(equal(2), of_vectors([[0.0], [0.0]]), ()).factors == (1.0, 1.0)
