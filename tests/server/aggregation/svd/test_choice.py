"""Which route is taken, and that each hands over to a safer one and says why."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flexlora_server.aggregation.svd import cost, truncated_svd
from flexlora_server.aggregation.svd.leading import LeadingTriplets, RouteFailed
from flexlora_server.aggregation.svd.stack import Stack
from flexlora_server.aggregation.svd.truncated_svd import decompose
from flexlora_server.errors import AggregationError
from tests.server.aggregation import oracle
from tests.server.aggregation.svd.stacks import dense, gaussian, stacks, with_spectrum


@pytest.mark.parametrize(
    ("shape", "rank", "exact", "certified"),
    [
        ((24, 58, 40), 16, ["svd"], ["svd"]),  # tiny: the safest costs nothing
        ((4096, 248, 4096), 64, ["gram", "qr", "svd"], ["gram", "qr", "svd"]),
        ((4096, 2480, 4096), 64, ["gram", "qr", "svd"], ["subspace", "gram", "qr", "svd"]),
        ((4096, 24_800, 4096), 64, ["eigh", "svd", "qr"], ["subspace", "eigh", "svd", "qr"]),
        ((64, 2000, 4096), 16, ["svd"], ["svd"]),
    ],
    ids=str,
)
def test_the_order_of_routes(shape: tuple[int, int, int], rank: int, exact: list[str], certified: list[str]) -> None:
    assert list(cost.choose_routes(*shape, rank, exact=True)) == exact
    assert list(cost.choose_routes(*shape, rank, exact=False)) == certified


@given(
    d=st.integers(1, 20_000),
    R=st.integers(1, 60_000),
    k=st.integers(1, 20_000),
    rank=st.integers(1, 500),
    exact=st.booleans(),
)
def test_the_last_resort_is_always_a_safe_one(d: int, R: int, k: int, rank: int, exact: bool) -> None:
    order = cost.choose_routes(d, R, k, rank, exact)
    assert order[-1] in {"svd", "qr"}
    assert len(set(order)) == len(order)
    assert "subspace" not in order[1:]
    assert not (exact and "subspace" in order)


def forced(monkeypatch: pytest.MonkeyPatch, *order: str) -> None:
    monkeypatch.setattr(cost, "choose_routes", lambda *shape, exact: order)


def test_a_failed_square_falls_back_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    forced(monkeypatch, "gram", "qr")
    stack, _ = with_spectrum([1.0, 1e-9], 30, 20)
    found = decompose(stack, 2)
    assert found.route == "qr"
    assert len(found.fell_back) == 1
    assert found.fell_back[0].startswith("gram: singular value 2 is")
    assert found.S.tolist() == pytest.approx([1.0, 1e-9], rel=1e-4)


def test_a_failed_certificate_falls_back_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    forced(monkeypatch, "subspace", "gram", "qr")
    monkeypatch.setattr(cost, "max_products", lambda *shape: 2)
    found = decompose(gaussian(200, 220, [40] * 4), 8, error_bound=1.0001)
    assert found.route == "gram"
    assert found.certificate == 1.0
    assert "subspace: certified" in found.fell_back[0]


def test_numbers_beyond_float32_fall_back(monkeypatch: pytest.MonkeyPatch) -> None:
    forced(monkeypatch, "subspace", "qr")
    stack, _ = with_spectrum([1e60, 1e59, 1e58], 30, 20)
    found = decompose(stack, 2, error_bound=1.5)
    assert found.route == "qr"
    assert found.fell_back == ("subspace: the products are too large for float32",)
    assert found.S.tolist() == pytest.approx([1e60, 1e59])


def test_when_all_fail_every_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(stack: Stack, rank: int) -> LeadingTriplets:
        raise RouteFailed("no luck")

    forced(monkeypatch, "gram", "qr")
    monkeypatch.setitem(truncated_svd._EXACT_ROUTES, "gram", fails)
    monkeypatch.setitem(truncated_svd._EXACT_ROUTES, "qr", fails)
    with pytest.raises(AggregationError, match="gram: no luck; qr: no luck"):
        decompose(gaussian(9, 8, [3]), 2)


@given(stack=stacks(), rank=st.integers(1, 12), route=st.sampled_from(["gram", "eigh", "subspace"]))
def test_whatever_route_comes_first_the_result_is_right(stack: Stack, rank: int, route: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        forced(patch, route, "svd")
        bound = 1.05 if route == "subspace" else 1.0
        found = decompose(stack, rank, error_bound=bound)
    W = dense(stack)
    got = oracle.to_numpy(found.US) @ oracle.to_numpy(found.Vt)
    best = float(np.linalg.norm(W - oracle.truncated(W, rank)))
    size = max(float(np.linalg.norm(W)), 1e-12 * stack.rank_one_norms)
    slack = (5e-6 if route == "subspace" else 5e-7) * size + 1e-14 * stack.rank_one_norms
    assert np.linalg.norm(W - got) <= found.certificate * best + slack
    assert found.Vt.shape == (rank, W.shape[1])
    rows = found.Vt[: min(rank, W.shape[1])]
    assert torch.allclose(rows @ rows.mT, torch.eye(len(rows)).double(), atol=1e-6)
    assert math.isfinite(found.total_energy)
