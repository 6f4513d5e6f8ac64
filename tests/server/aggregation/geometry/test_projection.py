"""The figures of a round with many participants: norms of the whole changes, inner products of the projected ones."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor

from flexlora_server.aggregation.factors import GlobalFactors, Update, slice_factors
from flexlora_server.aggregation.geometry import projection
from flexlora_server.aggregation.geometry.projection import projected_geometry
from flexlora_server.aggregation.geometry.update_geometry import module_geometry
from flexlora_server.aggregation.strategies.registry import strategy
from tests.server.aggregation.cases import DTYPES, idle_update
from tests.server.aggregation.geometry.test_geometry import Case, cases, dense_changes, global_factors
from tests.server.aggregation.geometry.test_hostile_factors import honest, rebalanced


def squared_norms(updates: Sequence[Update], previous: GlobalFactors, fresh: bool = False) -> Tensor:
    return projected_geometry(updates, previous, previous, torch.float32, fresh)[1]


@given(case=cases())
def test_matches_the_oracle(case: Case) -> None:
    D = dense_changes(case)
    geometry, squares = projected_geometry(case.updates, case.previous, case.previous, case.dtype, case.fresh)
    assert squares.numpy() == pytest.approx([float((x * x).sum()) for x in D], rel=1e-4, abs=1e-9)
    U, V = (np.linalg.qr(x.double().numpy())[0] for x in (case.previous.B, case.previous.A.mT))
    c = min(U.shape[1], V.shape[1])
    X = np.array([(U[:, :c].T @ x @ V[:, :c]).ravel() for x in D])
    size = np.sqrt(squares.numpy())
    assert np.all(np.abs(geometry.inner.numpy() - X @ X.T) <= 1e-4 * np.outer(size, size) + 1e-9)


@pytest.mark.parametrize("columns", [1, 5, 64])
def test_how_many_are_multiplied_at_once_does_not_matter(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    updates, previous = honest()
    mixed = [
        replace(u, A=u.A[: 1 + i % 3], B=u.B[:, : 1 + i % 3], served_scaling=(1.0, 2.0)[i % 2])
        for i, u in enumerate(updates)
    ]
    whole = projected_geometry(mixed, previous, previous, torch.float32, False)
    monkeypatch.setattr(projection, "COLUMNS", columns)
    parts = projected_geometry(mixed, previous, previous, torch.float32, False)
    assert torch.allclose(whole[0].inner, parts[0].inner, rtol=1e-4)
    assert torch.allclose(whole[1], parts[1], rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_who_changed_nothing_has_a_change_of_exactly_zero(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(2)
    previous = global_factors(generator, 30, 20, 6, dtype)
    updates = [idle_update(previous, rank, 3.7, 0.5, dtype) for rank in (2, 6)]
    geometry, squares = projected_geometry(updates, previous, previous, dtype, False)
    assert squares.tolist() == [0.0, 0.0]
    assert geometry.inner.tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_a_small_change_keeps_its_digits() -> None:
    """A ten-thousandth of what was served: in the difference of float32 products nothing of its square would be left."""
    updates, previous = honest(size=1e-4)
    A, B = slice_factors(previous, 4, 1.0, torch.float32)
    true = [float((u.B.double() @ u.A.double() - B.double() @ A.double()).square().sum()) for u in updates]
    assert squared_norms(updates, previous).tolist() == pytest.approx(true, rel=1e-4)


@pytest.mark.parametrize("c", [1e-30, 1e-8, 100.0, 1e15, 1e25])
@pytest.mark.parametrize("size", [0.1, 1e-4])
def test_a_product_has_one_norm_whatever_its_factors(c: float, size: float) -> None:
    updates, previous = honest(size=size)
    disguised = [rebalanced(replace(updates[0], A=updates[0].A.double(), B=updates[0].B.double()), c), *updates[1:]]
    assert torch.allclose(squared_norms(disguised, previous), squared_norms(updates, previous), rtol=1e-3)


def test_factors_that_cancel_do_not_look_shorter() -> None:
    x, y = torch.full((8, 1), 1e6), torch.full((1, 8), 1.0)
    B, A = torch.cat([x, x * (1 - 1e-4)], dim=1), torch.cat([y, -y])
    true = float((B.double() @ A.double()).square().sum())
    [square] = squared_norms([Update(A, B, 1.0, 1.0, 1.0)], GlobalFactors(torch.zeros(8, 2), A)).tolist()
    assert square == pytest.approx(true, rel=1e-3)


def test_figures_survive_factors_that_float32_products_do_not() -> None:
    updates, previous = honest()
    wild = replace(updates[0], A=updates[0].A * 1e-37, B=updates[0].B * 1e37, scaling=15.0)
    tame = replace(updates[0], scaling=15.0)
    result = strategy("flexlora").aggregate(updates, previous, torch.float32).factors
    (geometry, squares), (expected, norms) = (
        projected_geometry([one, *updates[1:]], previous, result, torch.float32, False) for one in (wild, tame)
    )
    assert torch.allclose(squares, norms, rtol=1e-2)
    assert torch.allclose(geometry.inner, expected.inner, rtol=1e-2)


def test_what_comes_late_is_measured_against_what_it_was_served() -> None:
    updates, previous = honest()
    older = replace(previous, B=0.7 * previous.B.flip(0))
    updates = [replace(updates[0], base=older), *updates[1:]]
    exact = module_geometry(updates, previous, None, torch.float32, False)
    assert torch.allclose(squared_norms(updates, previous), exact.inner.diagonal(), rtol=1e-4)
