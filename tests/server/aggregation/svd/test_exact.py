"""Every exact route against the float64 oracle, whatever the stack: right, or it says that it cannot."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flexlora_server.aggregation.svd.dense import by_eigh, by_svd
from flexlora_server.aggregation.svd.gram import by_gram
from flexlora_server.aggregation.svd.leading import LeadingTriplets, RouteFailed
from flexlora_server.aggregation.svd.qr import by_qr
from flexlora_server.aggregation.svd.stack import Stack, Term
from tests.server.aggregation import oracle
from tests.server.aggregation.svd.stacks import dense, gaussian, stacks, with_spectrum

Route = Callable[[Stack, int], LeadingTriplets]
SAFE: list[Route] = [by_qr, by_svd]
SQUARING: list[Route] = [by_gram, by_eigh]
SHAPES = [(30, 40, (8,)), (40, 30, (3, 5, 1)), (12, 60, (20, 20)), (60, 12, (20, 20)), (16, 16, (40,)), (1, 5, (3,))]


def check(found: LeadingTriplets, stack: Stack, rank: int, accuracy: float) -> None:
    W = dense(stack)
    norm, rounding = float(np.linalg.norm(W)), 1e-13 * stack.rank_one_norms  # of the oracle's own sum
    size = max(norm, rounding / accuracy)
    values = oracle.singular_values(W)
    S = oracle.to_numpy(found.S)
    assert found.certificate == 1.0
    assert np.allclose(S, values[: len(S)], atol=accuracy * size)
    assert found.total_energy == pytest.approx(norm**2, rel=1e-9, abs=2 * norm * rounding + rounding**2)
    V = oracle.to_numpy(found.Vt)
    live = 1e3 * accuracy * size < S
    assert np.allclose((V @ V.T)[live][:, live], np.eye(int(live.sum())), atol=1e-6)
    got = oracle.to_numpy(found.US) @ V
    best = float(np.linalg.norm(W - oracle.truncated(W, rank)))
    assert np.linalg.norm(W - got) <= best + accuracy * size


@pytest.mark.parametrize("route", SAFE + SQUARING)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_the_oracle(route: Route, shape: tuple[int, int, tuple[int, ...]]) -> None:
    d, k, ranks = shape
    stack = gaussian(d, k, ranks)
    rank = min(6, d, k, sum(ranks))
    check(route(stack, rank), stack, rank, 1e-10)


@pytest.mark.parametrize("route", SAFE)
@given(stack=stacks(), rank=st.integers(1, 12))
def test_the_safe_routes_take_anything(route: Route, stack: Stack, rank: int) -> None:
    check(route(stack, rank), stack, rank, 1e-10)


@pytest.mark.parametrize("route", SQUARING)
@given(stack=stacks(), rank=st.integers(1, 12))
def test_the_squaring_routes_are_right_or_say_so(route: Route, stack: Stack, rank: int) -> None:
    try:
        found = route(stack, rank)
    except RouteFailed:
        return
    check(found, stack, rank, 1e-7)
    values = oracle.singular_values(dense(stack))
    assert np.allclose(oracle.to_numpy(found.S), values[: len(found.S)], rtol=2e-5)


@pytest.mark.parametrize("route", SQUARING)
def test_a_value_that_squaring_loses_is_told(route: Route) -> None:
    stack, _ = with_spectrum([1.0, 1e-7], 30, 20)
    with pytest.raises(RouteFailed, match=r"singular value 2 is .* of the first, lost in a .* square"):
        route(stack, 2)
    assert float(route(stack, 1).S[0]) == pytest.approx(1.0)


@pytest.mark.parametrize("route", SAFE)
def test_small_values_keep_their_digits(route: Route) -> None:
    stack, _ = with_spectrum([1.0, 1e-4, 1e-8, 1e-12], 30, 20)
    assert oracle.to_numpy(route(stack, 4).S) == pytest.approx([1.0, 1e-4, 1e-8, 1e-12], rel=1e-3)


def test_nearly_equal_rows_of_A_do_no_harm_to_the_gram_route() -> None:
    """The first round: everybody's A is the same prefix, moved a little."""
    generator = torch.Generator().manual_seed(1)
    A = torch.randn(8, 50, generator=generator)
    for moved in (1e-2, 1e-6, 0.0):
        terms = [
            Term(torch.randn(40, r, generator=generator), A[:r] + moved * torch.randn(r, 50, generator=generator), 0.25)
            for r in (2, 4, 8, 8)
        ]
        check(by_gram(Stack(terms), 8), Stack(terms), 8, 1e-9)


def test_the_second_driver_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object, **kwargs: object) -> None:
        raise torch.linalg.LinAlgError("did not converge")  # type: ignore[attr-defined]

    stack = gaussian(30, 20, [8])
    first = by_qr(stack, 6)
    monkeypatch.setattr(torch.linalg, "svd", fails)
    second = by_qr(stack, 6)
    check(second, stack, 6, 1e-10)
    assert torch.allclose(first.S, second.S, atol=1e-9)
    monkeypatch.setattr(torch.linalg, "eigh", fails)
    with pytest.raises(RouteFailed, match="neither SVD algorithm converged"):
        by_qr(stack, 6)
    with pytest.raises(RouteFailed, match="symmetric eigensolver failed"):
        by_gram(stack, 6)
