"""Filters one after the other: what the shares add up to, whom the order of participants and of filters changes."""

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexlora_server.aggregation.filters.cosine import Cosine
from flexlora_server.aggregation.filters.geometric_median import GeometricMedian
from flexlora_server.aggregation.filters.multi_krum import MultiKrum
from flexlora_server.aggregation.filters.norm_clip import FixedBound, RunningBound
from flexlora_server.aggregation.filters.reweight import NOTHING_LEFT, apply_filters
from flexlora_server.aggregation.filters.rule import Rule
from flexlora_server.errors import AggregationError
from tests.server.aggregation.filters.rounds import RULES, equal, of_vectors, vector_rounds

chains = st.lists(st.sampled_from(RULES), max_size=4)
Round = tuple[list[float], list[list[float]], list[float] | None]


@given(case=vector_rounds(), filters=chains)
def test_shares_are_weights(case: Round, filters: list[Rule]) -> None:
    weights, changes, previous = case
    shares = apply_filters(weights, of_vectors(changes, previous), filters, (1.0, 2.0))
    assert math.fsum([*shares.upload, *shares.served]) == pytest.approx(1.0, abs=1e-12)
    assert min(*shares.upload, *shares.served) >= 0
    assert shares.any_upload_counts or NOTHING_LEFT in shares.notes[0]


@given(case=vector_rounds())
def test_without_filters_the_weights_are_what_they_were(case: Round) -> None:
    weights, changes, previous = case
    for filters in ((), (FixedBound(1e9), Cosine(-1.0))):
        shares = apply_filters(weights, of_vectors(changes, previous), filters, ())
        assert shares.upload == tuple(weights)
        assert shares.served == (0.0,) * len(weights)
        assert shares.notes == ((),) * len(weights)


@given(case=vector_rounds(), filters=chains, data=st.data())
def test_participants_in_another_order_have_the_same_shares(
    case: Round, filters: list[Rule], data: st.DataObject
) -> None:
    weights, changes, previous = case
    order = data.draw(st.permutations(range(len(weights))))
    some = apply_filters(weights, of_vectors(changes, previous), filters, (1.0,))
    others = apply_filters(
        [weights[i] for i in order], of_vectors([changes[i] for i in order], previous), filters, (1.0,)
    )
    assert others.upload == pytest.approx([some.upload[i] for i in order], abs=1e-6)
    assert others.served == pytest.approx([some.served[i] for i in order], abs=1e-6)


@given(case=vector_rounds(), bound=st.floats(0.01, 100))
def test_clipping_never_lets_a_change_exceed_the_bound(case: Round, bound: float) -> None:
    weights, changes, previous = case
    shares = apply_filters(weights, of_vectors(changes, previous), [FixedBound(bound)], ())
    for weight, upload, change in zip(weights, shares.upload, changes, strict=True):
        assert upload * math.hypot(*change) <= weight * bound * (1 + 1e-12)


def test_a_clipped_change_is_shared_with_what_was_served() -> None:
    shares = apply_filters([0.25, 0.75], of_vectors([[4.0], [1.0]]), [FixedBound(1.0)], ())
    assert shares.upload == (0.0625, 0.75)
    assert shares.served == (0.1875, 0.0)
    assert shares.notes == (("clipped to 0.25 of its change (norm 4, bound 1)",), ())


def test_everybody_dropped_leaves_what_was_served() -> None:
    weights = [0.25, 0.75]
    shares = apply_filters(weights, of_vectors([[-1.0], [-2.0]], [1.0]), [Cosine(0.0), GeometricMedian()], ())
    assert (shares.upload, shares.served, shares.any_upload_counts) == ((0.0, 0.0), tuple(weights), False)
    assert [told[-1] for told in shares.notes] == [NOTHING_LEFT, NOTHING_LEFT]
    assert "dropped by cosine" in shares.notes[0][0]


def after(filters: Sequence[Rule]) -> tuple[tuple[float, ...], tuple[tuple[str, ...], ...]]:
    """Four honest, one far away against the last change, one far away along it."""
    changes = [[1.0], [1.1], [1.2], [1.3], [-50.0], [60.0]]
    shares = apply_filters(equal(6), of_vectors(changes, [1.0]), filters, ())
    return shares.upload, shares.notes


def test_a_filter_does_not_see_whom_an_earlier_one_dropped() -> None:
    """The median of the norms is 1.3 with the dropped one, 1.2 without."""
    upload, notes = after([RunningBound(1.0, 0), Cosine(0.0)])
    assert upload == pytest.approx((0.2, 0.2, 0.2, 0.2 * 1.2 / 1.3, 0.0, 0.2 * 1.2 / 60), rel=0.1)
    first = [note for told in notes for note in told]
    _, notes = after([Cosine(0.0), RunningBound(1.0, 0)])
    second = [note for told in notes for note in told]
    assert [len(told) for told in notes] == [0, 0, 0, 1, 1, 1]
    assert any("bound 1.2)" in note for note in first + second)
    assert notes[4] == ("dropped by cosine: -1 to the last round's change, asked is 0",)


def test_a_filter_sees_changes_as_an_earlier_one_clipped_them() -> None:
    """Clipped to 1.3, the one far along is a neighbour for Krum; unclipped it is the farthest."""
    clipped, _ = after([FixedBound(1.3), MultiKrum(0.1)])
    assert [weight > 0 for weight in clipped] == [True, True, True, True, False, True]
    raw, _ = after([MultiKrum(0.1), FixedBound(1.3)])
    assert [weight > 0 for weight in raw] == [True, True, True, True, True, False]


def test_clipping_twice_multiplies() -> None:
    shares = apply_filters([1.0], of_vectors([[8.0]]), [FixedBound(4.0), FixedBound(1.0)], ())
    assert (shares.upload, shares.served) == ((0.125,), (0.875,))
    assert shares.notes[0][1] == "clipped to 0.25 of its change (norm 4, bound 1)"


def test_a_participant_of_weight_zero_is_not_judged() -> None:
    shares = apply_filters([0.5, 0.5, 0.0], of_vectors([[1.0], [1.0], [9.0]]), [RunningBound(1.0, 0)], ())
    assert (shares.upload, shares.notes) == ((0.5, 0.5, 0.0), ((), (), ()))


def test_weights_that_do_not_sum_to_one_are_refused() -> None:
    with pytest.raises(AggregationError, match="sum to 1"):
        apply_filters([0.5, 0.4], of_vectors([[1.0], [1.0]]), [], ())
