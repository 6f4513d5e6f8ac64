"""Deflated Lanczos never claims more than is true, on spectra made to break it, and it can be had where it is meant for."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from flexlora_server.aggregation.svd import deflation
from flexlora_server.aggregation.svd.deflation import DeflatedLanczos, Request
from flexlora_server.aggregation.svd.leading import RouteFailed
from flexlora_server.aggregation.svd.majorants import COUNT, majorants
from flexlora_server.aggregation.svd.small_matrices import eigh, orthonormal
from flexlora_server.aggregation.svd.stack import Stack, Term
from flexlora_server.aggregation.svd.subspace import by_subspace
from flexlora_server.aggregation.svd.tail_bounds import tail_bounds
from tests.server.aggregation import oracle
from tests.server.aggregation.svd.stacks import dense, with_spectrum

D, K, N = 150, 130, 130
Family = Callable[[Tensor, torch.Generator], Tensor]
FAMILIES: dict[str, Family] = {
    "flat": lambda j, g: torch.ones(N),
    "slow": lambda j, g: torch.exp(-0.02 * j),
    "harmonic": lambda j, g: 1 / (1 + j),
    "a head on a floor": lambda j, g: torch.exp(-0.3 * j) + 1e-2,
    "steps": lambda j, g: torch.where(j < 10, 1.0, torch.where(j < 60, 0.3, 0.05)),
    "clustered": lambda j, g: 1.0 + 1e-5 * torch.rand(N, generator=g) + 3.0 * (j < 6),
    "a near-tie at the rank": lambda j, g: torch.where(j < 21, 1.0, 0.999),
    "one hidden": lambda j, g: torch.where(j < 8, 5.0, torch.where(j < 30, 1.0, 0.01)),
    "random": lambda j, g: torch.rand(N, generator=g),
    "noise on a slope": lambda j, g: torch.exp(-0.1 * j) + 0.05 * torch.rand(N, generator=g),
    "rank-deficient": lambda j, g: torch.where(j < 45, 1.0, 0.0),
    "one huge": lambda j, g: torch.where(j < 1, 1e3, torch.exp(-0.01 * j)),
}


def hostile(family: str, terms: str, scale: float, seed: int) -> tuple[Stack, Tensor]:
    """W of that spectrum as a sum of several terms, and its right singular vectors (N, K)."""
    generator = torch.Generator().manual_seed(seed)
    sigma = FAMILIES[family](torch.arange(N), generator).double().sort(descending=True).values * scale
    U = torch.linalg.qr(torch.randn(D, N, generator=generator, dtype=torch.float64)).Q * sigma
    Vt = torch.linalg.qr(torch.randn(K, N, generator=generator, dtype=torch.float64)).Q.mT.contiguous()
    parts = [Term(U[:, i : i + 40].float(), Vt[i : i + 40].float(), 1.0) for i in range(0, N, 40)]
    if terms == "duplicates":
        parts = [Term(part.B, part.A, 0.1) for part in parts for _ in range(10)]
    if terms == "aligned":  # participants that agree but for a little
        parts = [Term(p.B + 0.01 * scale * torch.randn(p.B.shape, generator=generator), p.A, 0.5) for p in parts * 2]
    return Stack(parts), Vt


def lanczos(W: Tensor, rank: int, bound: float, start: Tensor | None, seed: int) -> deflation.Truncation | None:
    """Of one iterated block, whether or not the route would try: float32 products with a dense W."""
    generator = torch.Generator().manual_seed(seed)

    def forth(Q: Tensor) -> Tensor:
        return W.mT.float() @ Q.float()

    def back(V: Tensor) -> Tensor:
        return W.float() @ V.float()

    V = torch.randn(W.shape[1], rank + 8, generator=generator, dtype=torch.float64).to(W.device)
    if start is not None:
        V[:, : start.shape[0]] = start.mT
    Q = orthonormal(back(orthonormal(V)[0]))[0]
    images = forth(Q).double()
    theta, vectors = eigh(images.mT @ images)
    p = min(rank - 1, max(1, int((theta > deflation.HEAD * theta[rank - 1]).sum())))
    made = DeflatedLanczos((Q @ vectors, images @ vectors, theta), p, (forth, back), generator)
    total = float(W.square().sum())
    return made.run(Request(rank, bound, total**0.5, torch.float32), total)


@given(
    family=st.sampled_from(sorted(FAMILIES)),
    terms=st.sampled_from(["plain", "duplicates", "aligned"]),
    scale=st.sampled_from([1.0, 1e-12, 1e12]),
    rank=st.sampled_from([12, 21]),
    start=st.sampled_from(["cold", "right", "wrong"]),
    seed=st.integers(0, 2**20),
)
def test_a_claim_is_true(family: str, terms: str, scale: float, rank: int, start: str, seed: int) -> None:
    stack, Vt = hostile(family, terms, scale, seed)
    W = torch.from_numpy(dense(stack))
    values = torch.linalg.svdvals(W).square()
    best, size = math.sqrt(float(values[rank:].sum())), math.sqrt(float(values.sum()))
    given_start = {"cold": None, "right": Vt[:rank], "wrong": Vt[-rank:]}[start]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deflation, "DEPTHS", (2, 3, 4))
        patch.setattr(deflation, "MAX_SLACK_SHARE", math.inf)  # whatever the head's residual
        found = lanczos(W, rank, 3.0, given_start, seed)
    if found is None:
        return
    got = W - found.Q @ (found.Q.mT @ W)
    assert float(got.norm()) <= found.ratio * best + 1e-9 * size  # float32 rounding is in the claim


@pytest.mark.parametrize("family", ["flat", "steps", "a near-tie at the rank"])
def test_it_can_be_had(family: str) -> None:
    stack, Vt = hostile(family, "plain", 1.0, 3)
    W = torch.from_numpy(dense(stack))
    found = lanczos(W, 12, 1.4, Vt[:12], 1)
    assert found is not None
    assert found.ratio <= 1.4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
def test_it_can_be_had_on_a_gpu() -> None:
    stack, Vt = hostile("steps", "plain", 1.0, 3)
    found = lanczos(torch.from_numpy(dense(stack)).cuda(), 12, 1.4, Vt[:12].cuda(), 1)
    assert found is not None
    assert found.Q.is_cuda


def test_the_route_takes_it_where_the_spectrum_is_flat_at_the_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head, then values that hardly fall: its truncation, certificate and energy are those of the whole W."""
    taken: list[deflation.Truncation | None] = []
    run = DeflatedLanczos.run

    def seen(self: DeflatedLanczos, wanted: Request, lost: float) -> deflation.Truncation | None:
        taken.append(run(self, wanted, lost))
        return taken[-1]

    monkeypatch.setattr(DeflatedLanczos, "run", seen)
    stack, V = with_spectrum([30 * 0.8**j + 1 - j / 700 for j in range(500)], 600, 500)
    found = by_subspace(stack, 80, 1.1, V[:80])
    assert [truncation.ratio for truncation in taken if truncation] == [found.certificate]
    assert found.certificate <= 1.1
    W = dense(stack)
    best = float(np.linalg.norm(W - oracle.truncated(W, 80)))
    assert float(np.linalg.norm(W - oracle.to_numpy(found.US) @ oracle.to_numpy(found.Vt))) <= found.certificate * best
    assert found.total_energy == pytest.approx(float(np.linalg.norm(W)) ** 2, rel=0.05)


def test_a_falling_spectrum_is_left_to_the_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DeflatedLanczos, "run", None)
    stack, V = with_spectrum([0.9**j for j in range(200)], 300, 250)
    assert by_subspace(stack, 60, 1.05, V[:60]).certificate <= 1.05


def test_what_it_fails_to_certify_counts_as_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DeflatedLanczos, "_certified", lambda *given: None)
    stack, V = with_spectrum([30 * 0.8**j + 1 - j / 700 for j in range(500)], 600, 500)
    with pytest.raises(RouteFailed, match="after 2 products"):
        by_subspace(stack, 80, 1.1, V[:80], products=5)


@pytest.mark.parametrize("degree", [3, 7, 15])
def test_majorants_are_above_everywhere(degree: int) -> None:
    """Between the points of the grids they were made on, too."""
    made = majorants(degree)
    u = torch.linspace(0, 1, 4001, dtype=torch.float64)
    basis = torch.cos(torch.arange(degree) * torch.acos((2 * u - 1).clamp(-1, 1))[:, None])
    f, s = u * (made.g @ basis.mT), u * (made.h @ basis.mT)
    assert (f >= (u - made.c[:, None]).clamp(min=0) - 1e-12).all()
    assert (s >= f.square() - 1e-12).all()
    assert (f.amax(dim=1) <= made.f_most).all()
    assert (s.amax(dim=1) <= made.s_most).all()
    assert f.shape[0] == COUNT


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_tail_bounds_hold(family: str) -> None:
    """Of a diagonal matrix, from its Krylov space: the largest, the sum of the largest, the trace."""
    generator = torch.Generator().manual_seed(5)
    D_ = FAMILIES[family](torch.arange(N), generator).double().sort(descending=True).values.square()
    for b, steps in ((16, 4), (24, 4), (20, 5)):
        G = torch.randn(N, b, generator=generator, dtype=torch.float64)
        block, R0 = orthonormal(G)
        basis = block
        for _ in range(steps - 1):
            block = D_[:, None] * block
            for _ in range(2):
                block = torch.linalg.qr(block - basis @ (basis.mT @ block)).Q
            basis = torch.cat([basis, block], dim=1)
        values, vectors = eigh(basis.mT @ (D_[:, None] * basis))
        weights = (R0.mT @ vectors[:b]).square().sum(dim=0) / b
        assert float(weights @ values) == pytest.approx(float((G * (D_[:, None] * G)).sum()) / b)
        for count in (5, 40):
            found = tail_bounds(values, weights, N, b, steps, count, 1e-9)
            assert found.largest >= float(D_[0]) * (1 - 1e-12)
            assert found.top >= float(D_[:count].sum()) * (1 - 1e-12)
            assert found.energy <= float(D_.sum()) * (1 + 1e-12)


@pytest.mark.parametrize(
    ("terms", "width"),
    [
        *((terms, width) for terms in ("plain", "duplicates", "aligned") for width in (40, 130)),
        ("a thousand", 40),
        pytest.param("a thousand", 130, marks=pytest.mark.slow),
    ],
)
def test_the_products_round_by_less_than_is_assumed(terms: str, width: int) -> None:
    """However many terms there are: a float32 sum of a thousand equal ones would be wrong by 35 times as much."""
    stack, _ = hostile("slow", "plain" if terms == "a thousand" else terms, 1.0, 2)
    if terms == "a thousand":
        stack = Stack([Term(part.B, part.A, 1e-3) for part in stack.terms for _ in range(1000)])
    size = max(stack.typical_norm, float(torch.from_numpy(dense(stack)).norm()))
    V = orthonormal(torch.randn(K, width, generator=torch.Generator().manual_seed(1)))[0]
    for X, product in ((V, stack.times), (orthonormal(stack.times(V))[0], stack.transposed_times)):
        error = product(X.float()).double() - product(X.double())
        assert float(error.norm()) < deflation.PRODUCT_ROUNDING[torch.float32] * size * math.sqrt(width) / 2
