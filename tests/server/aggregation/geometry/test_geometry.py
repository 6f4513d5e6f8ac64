"""The geometry of a round's changes against dense float64 matrices."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flexlora_server.aggregation.factors import GlobalFactors, Update, rounded, slice_factors
from flexlora_server.aggregation.geometry import changes
from flexlora_server.aggregation.geometry.update_geometry import Geometry, module_geometry, tensor_geometry
from flexlora_server.errors import AggregationError
from tests.server.aggregation import oracle
from tests.server.aggregation.cases import DTYPES, idle_update, product, random_update

SCALINGS = (1.0, 0.125, 3.7, 32.0)


@dataclass(frozen=True)
class Case:
    """What a geometry is made of."""

    updates: list[Update]
    previous: GlobalFactors
    before: GlobalFactors | None
    dtype: torch.dtype
    fresh: bool

    @property
    def geometry(self) -> Geometry:
        return module_geometry(self.updates, self.previous, self.before, self.dtype, self.fresh)


def global_factors(generator: torch.Generator, d: int, k: int, rank: int, dtype: torch.dtype) -> GlobalFactors:
    B = torch.randn(d, rank, generator=generator)
    return GlobalFactors(B, rounded(torch.randn(rank, k, generator=generator), dtype))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Any shapes and ranks; uploads near what was served, far from it, and equal to it, at another scaling or not."""
    d, k, r_max = draw(st.integers(1, 20)), draw(st.integers(1, 20)), draw(st.integers(1, 8))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    dtype, fresh = draw(st.sampled_from(DTYPES)), draw(st.booleans())
    previous = global_factors(generator, d, k, r_max, dtype)
    before = global_factors(generator, d, k, draw(st.integers(1, 8)), dtype) if draw(st.booleans()) else None
    updates = []
    for rank in draw(st.lists(st.integers(1, r_max), min_size=1, max_size=5)):
        served = draw(st.sampled_from(SCALINGS))
        A, B = slice_factors(previous, rank, served, dtype)
        size = draw(st.sampled_from([0.0, 1e-3, 1.0]))
        A, B = ((x.float() + size * torch.randn(x.shape, generator=generator)).to(dtype) for x in (A, B))
        updates.append(Update(A, B, draw(st.sampled_from([served, *SCALINGS])), 0.1, served))
    return Case(updates, previous, before, dtype, fresh)


def dense_changes(case: Case) -> list[oracle.Matrix]:
    """D_i, each as a d x k matrix, the rounding of what was served done by hand."""
    found, name = [], str(case.dtype).removeprefix("torch.")
    for u in case.updates:
        W = u.scaling * (oracle.to_numpy(u.B) @ oracle.to_numpy(u.A))
        B = oracle.to_numpy(case.previous.B)[:, : u.rank] / u.served_scaling
        served = u.served_scaling * oracle.rounded(B, name) @ oracle.to_numpy(case.previous.A)[: u.rank]
        found.append(W if case.fresh else W - served)
    return found


def sizes(case: Case) -> oracle.Matrix:
    """An upper bound of the terms that cancel in each D_i."""
    served = 0 if case.fresh else np.linalg.norm(case.previous.B) * np.linalg.norm(case.previous.A)
    return np.array([float(u.scaling * u.B.double().norm() * u.A.double().norm() + served) for u in case.updates])


@given(case=cases())
def test_matches_the_oracle(case: Case) -> None:
    D, size = dense_changes(case), sizes(case)
    want = np.array([[float((x * y).sum()) for y in D] for x in D])
    got = case.geometry
    assert np.all(np.abs(got.inner.numpy() - want) <= 1e-11 * np.outer(size, size))
    assert got.norms == pytest.approx([float(np.linalg.norm(x)) for x in D], abs=1e-5 * float(size.max()))
    if case.before is None:
        assert got.with_previous is None
        assert got.previous_norm == 0
        return
    G = product(case.previous) - product(case.before)
    length = float(np.linalg.norm(G))
    assert got.previous_norm == pytest.approx(length, rel=1e-9)
    assert got.with_previous is not None
    along = np.array([float((x * G).sum()) for x in D])
    assert np.all(
        np.abs(got.with_previous.numpy() - along) <= 1e-11 * size * (length + np.linalg.norm(case.previous.B))
    )


@given(case=cases())
def test_the_same_bytes_make_the_same_geometry(case: Case) -> None:
    assert torch.equal(case.geometry.inner, case.geometry.inner)


@pytest.mark.parametrize("chunk", [1, 3, 512])
def test_the_size_of_a_chunk_does_not_matter(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    previous = global_factors(generator, 30, 20, 6, torch.float32)
    before = global_factors(generator, 30, 20, 6, torch.float32)
    updates = [random_update(generator, 30, 20, rank, 0.5) for rank in (2, 6)]
    whole = module_geometry(updates, previous, before, torch.float32, False)
    monkeypatch.setattr(changes, "CHUNK_ROWS", chunk)
    parts = module_geometry(updates, previous, before, torch.float32, False)
    assert torch.allclose(whole.inner, parts.inner, rtol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_who_changed_nothing_has_a_change_of_exactly_zero(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(2)
    previous = global_factors(generator, 30, 20, 6, dtype)
    updates = [idle_update(previous, rank, 3.7, 0.5, dtype) for rank in (2, 6)]
    assert module_geometry(updates, previous, None, dtype, False).inner.tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_a_small_change_of_a_large_update_keeps_its_digits() -> None:
    """A billionth of what was served: in the difference of the products' inner products nothing of it would be left."""
    generator = torch.Generator().manual_seed(3)
    previous = GlobalFactors(torch.zeros(30, 4), torch.randn(4, 20, generator=generator))
    previous.B[:, 0] = 2.0**20
    A, B = slice_factors(previous, 4, 1.0, torch.float32)
    B[5, 3] = 2.0**-10  # the only entry that changes
    [norm] = module_geometry([Update(A, B, 1.0, 1.0, 1.0)], previous, None, torch.float32, False).norms
    assert norm == pytest.approx(2.0**-10 * float(A[3].double().norm()), rel=1e-12)


def test_factors_that_cancel_cannot_look_shorter_than_they_are() -> None:
    """B A = 1e9 (x - x') y: what rounding may have swallowed is added to the length."""
    x, previous = torch.full((8, 1), 1e9), GlobalFactors(torch.zeros(8, 2), torch.zeros(2, 8))
    for epsilon in (1e-6, 3e-7, 1e-7, 0.0):
        B = torch.cat([x, x * (1 - epsilon)], dim=1)
        A = torch.tensor([[1e9], [-1e9]]).expand(2, 8)
        true = float((B.double() @ A.double()).norm())
        [norm] = module_geometry([Update(A, B, 1.0, 1.0, 1.0)], previous, None, torch.float32, False).norms
        assert norm >= true * (1 - 1e-9)


def test_a_global_update_that_only_rounding_changed_has_no_direction() -> None:
    generator = torch.Generator().manual_seed(4)
    previous = global_factors(generator, 30, 20, 6, torch.float32)
    before = GlobalFactors(previous.B * (1 + 1e-8), previous.A)
    turned = GlobalFactors(-previous.B, -previous.A)
    for old in (before, turned, previous):
        got = module_geometry([random_update(generator, 30, 20, 6, 1.0)], previous, old, torch.float32, False)
        assert got.previous_norm == 0
        assert got.with_previous is not None
        assert got.with_previous.tolist() == [0.0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("first", [True, False])
def test_tensors_trained_in_full(dtype: torch.dtype, first: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    previous, before = torch.randn(7, 11, generator=generator), torch.randn(7, 11, generator=generator)
    uploads = [torch.randn(7, 11, generator=generator).to(dtype) for _ in range(3)]
    D = [(upload.double() - previous.to(dtype).double()).reshape(-1) for upload in uploads]
    got = tensor_geometry(uploads, previous, None if first else before, dtype)
    assert torch.allclose(got.inner, torch.stack(D) @ torch.stack(D).mT, rtol=1e-12)
    G = (previous.double() - before.double()).reshape(-1)
    assert got.previous_norm == (0 if first else pytest.approx(float(G.norm()), rel=1e-12))
    if got.with_previous is not None:
        assert torch.allclose(got.with_previous, torch.stack(D) @ G, rtol=1e-12)


def test_modules_add_up() -> None:
    one = Geometry(torch.tensor([[9.0]]).double(), torch.tensor([1.0]).double(), 3.0)
    other = Geometry(torch.tensor([[16.0]]).double(), torch.tensor([2.0]).double(), 4.0)
    both = one + other
    assert (both.norms, both.previous_norm) == ([5.0], 5.0)
    assert both.with_previous is not None
    assert both.with_previous.tolist() == [3.0]
    for stranger in (Geometry(one.inner, None, 0.0), Geometry(torch.eye(2).double(), torch.zeros(2).double(), 1.0)):
        with pytest.raises(AggregationError, match="cannot be added"):
            one + stranger


def test_some_participants_with_shorter_changes() -> None:
    inner = torch.tensor([[4.0, 1.0, 2.0], [1.0, 9.0, 3.0], [2.0, 3.0, 16.0]]).double()
    part = Geometry(inner, torch.tensor([1.0, 2.0, 3.0]).double(), 5.0).of([2, 0], [0.5, 1.0])
    assert part.inner.tolist() == [[4.0, 1.0], [1.0, 4.0]]
    assert part.with_previous is not None
    assert (part.with_previous.tolist(), part.previous_norm) == ([1.5, 1.0], 5.0)


def test_what_is_not_finite_is_refused() -> None:
    previous = GlobalFactors(torch.zeros(3, 2), torch.zeros(2, 3))
    bad = Update(torch.full((2, 3), float("nan")), torch.ones(3, 2), 1.0, 1.0, 1.0)
    with pytest.raises(AggregationError, match="NaN or an infinity"):
        module_geometry([bad], previous, None, torch.float32, False)
