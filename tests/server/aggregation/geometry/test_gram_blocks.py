"""The exact geometry from the products of the SVD: that of differences, or none where cancellation leaves too little."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flexlora_server.aggregation.factors import GlobalFactors, Update, slice_factors, weighted_stack
from flexlora_server.aggregation.geometry.gram_blocks import geometry_from_products
from flexlora_server.aggregation.geometry.update_geometry import Geometry, module_geometry
from flexlora_server.aggregation.strategies.registry import strategy
from flexlora_server.aggregation.svd.stack import Stack
from tests.server.aggregation.cases import DTYPES, idle_update
from tests.server.aggregation.geometry.test_geometry import Case, cases, global_factors
from tests.server.aggregation.geometry.test_hostile_factors import N, honest, rebalanced


def products(stack: Stack) -> torch.Tensor:
    of_B, of_A = stack.grams()
    return stack.scales[:, None] * of_B * stack.scales * of_A


def geometry(updates: list[Update], previous: GlobalFactors, fresh: bool = False) -> Geometry | None:
    return geometry_from_products(products(weighted_stack(updates)), updates, previous, torch.float32, fresh)


@given(case=cases(), shared=st.booleans())
def test_is_that_of_differences_or_none(case: Case, shared: bool) -> None:
    made = products(weighted_stack(case.updates)) if shared else None
    found = geometry_from_products(made, case.updates, case.previous, case.dtype, case.fresh)
    if found is not None:
        exact = module_geometry(case.updates, case.previous, None, case.dtype, case.fresh)
        lengths = torch.tensor(exact.norms, dtype=torch.float64)
        assert bool(((found.inner - exact.inner).abs() <= 1e-4 * torch.outer(lengths, lengths)).all())


@pytest.mark.parametrize("size", [1.0, 0.1, 1e-3])
@pytest.mark.parametrize("fresh", [False, True])
def test_is_found_for_changes_of_usual_size(size: float, fresh: bool) -> None:
    updates, previous = honest(size=size)
    exact, found = module_geometry(updates, previous, None, torch.float32, fresh), geometry(updates, previous, fresh)
    assert found is not None
    lengths = torch.tensor(exact.norms, dtype=torch.float64)
    assert bool(((found.inner - exact.inner).abs() <= 1e-5 * torch.outer(lengths, lengths)).all())


@pytest.mark.parametrize("c", [1e-8, 1e3, 1e15])
def test_a_product_has_one_geometry_whatever_its_factors(c: float) -> None:
    updates, previous = honest()
    found = geometry([rebalanced(updates[0], c), *updates[1:]], previous)
    assert found is not None
    assert torch.allclose(found.inner, module_geometry(updates, previous, None, torch.float32, False).inner, rtol=1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_change_of_nothing_is_left_to_differences(dtype: torch.dtype) -> None:
    previous = global_factors(torch.Generator().manual_seed(2), 30, 20, 6, dtype)
    updates = [idle_update(previous, rank, 3.7, 0.5, dtype) for rank in (2, 6)]
    assert geometry_from_products(products(weighted_stack(updates)), updates, previous, dtype, False) is None


def test_without_products_only_changes_that_float32_holds_are_found() -> None:
    for size, held in ((0.5, True), (0.01, False)):
        updates, previous = honest(size=size)
        found = geometry_from_products(None, updates, previous, torch.float32, False)
        assert (found is not None) == held
        if found is not None:
            exact = module_geometry(updates, previous, None, torch.float32, False)
            assert torch.allclose(found.inner, exact.inner, rtol=1e-4, atol=1e-5 * float(exact.inner.max()))


def test_a_tiny_change_is_left_to_differences() -> None:
    updates, previous = honest(size=1e-6)
    assert geometry(updates, previous) is None


@pytest.mark.parametrize("name", ["flexlora", "flexlora-residual", "flora"])
def test_strategies_hand_out_what_their_svd_has_made(name: str) -> None:
    """With d, k far above the sum of ranks the Gram route answers; the updates come first in the stack."""
    generator = torch.Generator().manual_seed(0)
    previous, updates = global_factors(generator, 2000, 1500, 8, torch.float32), []
    for _ in range(N):
        A, B = slice_factors(previous, 8, 1.0, torch.float32)
        A, B = (x + 0.1 * torch.randn(x.shape, generator=generator) for x in (A, B))
        updates.append(Update(A, B, 1.0, 1 / N, 1.0))
    aggregate = strategy(name).aggregate(updates, previous, torch.float32)
    assert aggregate.route == "gram"
    assert aggregate.products is not None
    expected = products(weighted_stack(updates))
    assert torch.allclose(aggregate.products[: 8 * N, : 8 * N], expected, rtol=1e-9, atol=1e-12 * float(expected.max()))


def test_what_comes_late_is_measured_against_what_it_was_served() -> None:
    updates, previous = honest()
    older = replace(previous, B=0.7 * previous.B.flip(0))
    updates = [replace(updates[0], base=older), *updates[1:]]
    exact = module_geometry(updates, previous, None, torch.float32, False)
    found = geometry(updates, previous)
    assert found is not None
    assert torch.allclose(found.inner, exact.inner, rtol=1e-4, atol=1e-5 * float(exact.inner.max()))
