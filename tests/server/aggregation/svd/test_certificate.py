"""The certificate never claims more than is true: every bound in it against exact numbers, on spectra made to break it."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flexlora_server.aggregation.svd.certificate import (
    FLOAT32_ROUNDING,
    MAX_BLOCKS,
    START_VECTORS,
    ComplementProbe,
    error_ratio,
    krylov_gap,
    max_energy,
)
from flexlora_server.aggregation.svd.leading import RouteFailed
from flexlora_server.aggregation.svd.small_matrices import orthonormal
from flexlora_server.aggregation.svd.stack import Stack
from flexlora_server.aggregation.svd.subspace import by_subspace
from tests.server.aggregation import oracle
from tests.server.aggregation.svd.stacks import dense, with_spectrum

SPECTRA = {
    "flat": [1.0] * 60,
    "nearly flat": [1.0 - 1e-3 * j for j in range(60)],
    "flat behind the rank": [4.0] * 8 + [1.0] * 52,
    "a plateau across the rank": [4.0] * 4 + [1.0] * 20 + [0.3] * 36,
    "slowly decaying": [1 / (1 + j) ** 0.5 for j in range(60)],
    "decaying": [0.8**j for j in range(60)],
    "one far above": [1e4] + [1.0] * 59,
    "one hidden value": [4.0] * 8 + [3.9] + [1e-3] * 51,
    "low rank": [3.0, 2.0, 1.0],
}
RANK = 8


def true_ratio(stack: Stack, US: torch.Tensor, Vt: torch.Tensor, rank: int) -> tuple[float, float]:
    """Error over the smallest possible, and float32 rounding relative to that."""
    W = dense(stack)
    got = float(np.linalg.norm(W - oracle.to_numpy(US) @ oracle.to_numpy(Vt)))
    best = float(np.linalg.norm(W - oracle.truncated(W, rank)))
    rounding = 2 * FLOAT32_ROUNDING * float(np.linalg.norm(W))
    return got / max(best, rounding), rounding / max(best, rounding)


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("start", ["cold", "right", "wrong"])
def test_a_claim_is_true(name: str, start: str) -> None:
    """Also from a start that leads away from the leading directions: the iteration may not know, the claim must."""
    stack, V = with_spectrum(SPECTRA[name], 90, 70, seed=3)
    given_start = {"cold": None, "right": V[:RANK], "wrong": V[-RANK:]}[start]
    try:
        found = by_subspace(stack, RANK, 1.2, given_start)
    except RouteFailed:
        return
    assert found.certificate <= 1.2
    ratio, rounding = true_ratio(stack, found.US, found.Vt, RANK)
    assert ratio <= found.certificate + rounding


@given(data=st.data(), seed=st.integers(0, 2**20))
def test_a_claim_is_true_of_any_spectrum(data: st.DataObject, seed: int) -> None:
    """Plateaus of any width and height, so that many singular values tie with the last one kept."""
    levels = data.draw(st.lists(st.tuples(st.floats(1e-3, 1e3), st.integers(1, 25)), min_size=1, max_size=5))
    sigma = sorted((value for value, width in levels for _ in range(width)), reverse=True)[:60]
    rank = data.draw(st.integers(1, min(20, len(sigma))))
    bound = data.draw(st.sampled_from([1.001, 1.02, 1.3]))
    stack, V = with_spectrum(sigma, 80, 64, seed)
    start = data.draw(st.sampled_from([None, V[:rank], V[-rank:]]))
    try:
        found = by_subspace(stack, rank, bound, start)
    except RouteFailed:
        return
    ratio, rounding = true_ratio(stack, found.US, found.Vt, rank)
    assert ratio <= found.certificate + rounding
    assert found.certificate <= bound


def test_it_can_be_had() -> None:
    """A bound that is never met would be true as well."""
    for name in ("flat behind the rank", "slowly decaying", "decaying"):
        stack, _ = with_spectrum(SPECTRA[name], 90, 70)
        found = by_subspace(stack, RANK, 1.1, None)
        assert true_ratio(stack, found.US, found.Vt, RANK)[0] < 1.02


def test_a_flat_spectrum_is_certified_where_the_rank_is_small_beside_it() -> None:
    stack, _ = with_spectrum([1.0] * 200, 300, 250)
    found = by_subspace(stack, RANK, 1.05, None)
    assert found.certificate <= 1.05
    assert true_ratio(stack, found.US, found.Vt, RANK)[0] == pytest.approx(1.0, abs=1e-4)


@given(data=st.data())
def test_most_energy_bounds_what_any_truncation_keeps(data: st.DataObject) -> None:
    """Of a random symmetric matrix and any subspace of it, with the exact mu and with larger ones."""
    n = data.draw(st.integers(2, 24))
    columns = data.draw(st.integers(1, min(12, n - 1)))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**20)))
    sigma = torch.rand(n, generator=generator, dtype=torch.float64) ** data.draw(st.sampled_from([0.1, 1, 8]))
    U = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q
    M = U @ (sigma[:, None] * U.mT)
    leading = U[:, sigma.argsort(descending=True)[:columns]]
    near = data.draw(st.sampled_from([0.0, 1e-6, 1e-2, 1.0]))
    Q = torch.linalg.qr(leading + near * torch.randn(n, columns, generator=generator, dtype=torch.float64)).Q
    P = torch.eye(n, dtype=torch.float64) - Q @ Q.mT
    mu = float(torch.linalg.eigvalsh(P @ M @ P)[-1])
    C = P @ M @ Q
    rank = data.draw(st.integers(1, columns))
    truth = float(torch.linalg.eigvalsh(M)[-rank:].sum())
    for looser in (1.0, 1.5, 10.0):
        assert max_energy(Q.mT @ M @ Q, C.mT @ C, rank, looser * mu) >= truth * (1 - 1e-12)


def test_most_energy_is_tight_where_there_is_a_gap() -> None:
    T, CtC = torch.diag(torch.tensor([4.0, 3.0])).double(), 1e-6 * torch.eye(2).double()
    bound = max_energy(T, CtC, 2, 1.0)
    assert 7.0 <= bound <= 7.0 + 1e-5  # 1e-6 / (4 - 1) + 1e-6 / (3 - 1) at best


@pytest.mark.parametrize("name", SPECTRA)
def test_what_lies_outside_is_bounded(name: str) -> None:
    """On both sides, around a good and a useless subspace: the largest eigenvalue from above and below, the trace from below."""
    stack, V = with_spectrum(SPECTRA[name], 90, 70, seed=5)
    W = dense(stack)
    generator = torch.Generator().manual_seed(2)
    for Q in (V[: min(RANK, len(V))].mT, orthonormal(torch.randn(70, RANK, generator=generator))[0]):
        outside = ComplementProbe(Q, stack.times, stack.transposed_times, generator)
        outside.begin(stack.times(outside.vectors).double())
        rest = W @ (np.eye(70) - oracle.to_numpy(Q @ Q.mT))
        mu, trace = float(np.linalg.norm(rest, 2)) ** 2, float(np.linalg.norm(rest)) ** 2
        slack = 1e-6 * float(np.linalg.norm(W)) ** 2
        for _ in range(MAX_BLOCKS):
            assert outside.lower_bound() <= mu * (1 + 1e-5) + slack
            assert outside.upper_bound() >= mu * (1 - 1e-5) - slack
            assert outside.energy_lower_bound() <= trace * (1 + 1e-5) + slack
            if not outside.extend():
                break
        assert outside.energy == pytest.approx(trace, rel=1.0, abs=slack)


def test_the_krylov_space_overlooks_less_the_deeper_it_is() -> None:
    shares = [krylov_gap(4096, START_VECTORS, steps) for steps in range(2, 9)]
    assert shares == sorted(shares, reverse=True)
    assert shares[1] < 0.75  # mu at most 4 times what three blocks see, 1.3 times what eight do
    assert shares[-1] < 0.25


@pytest.mark.parametrize("vectors", [1, 2, 4])
def test_overlooked_holds_for_a_spectrum_made_to_hide_the_leading_value(vectors: int) -> None:
    """One value above all others, which spread over [0, 1 - eps] as densely as a Krylov space finds hardest, at its ends.

    At a chance of a tenth the promise is broken in a tenth of the starts at most; one much bolder is broken often.
    """
    n, steps, chance, starts = 300, 4, 0.1, 300
    eps = krylov_gap(n, vectors, steps, chance)
    angles = torch.linspace(0, math.pi, n - 1, dtype=torch.float64)
    D = torch.cat([torch.ones(1, dtype=torch.float64), (1 - eps) * (1 + torch.cos(angles)) / 2])
    generator = torch.Generator().manual_seed(4)
    found = []
    for _ in range(starts):
        block = torch.randn(n, vectors, generator=generator, dtype=torch.float64)
        basis = torch.linalg.qr(torch.cat([block * D[:, None] ** power for power in range(steps)], dim=1)).Q
        found.append(float(torch.linalg.eigvalsh(basis.mT @ (D[:, None] * basis))[-1]))
    assert sum(value < 1 - eps for value in found) <= chance * starts
    assert sum(value < 1 - eps / 20 for value in found) > chance * starts


def test_certified_by_hand() -> None:
    assert error_ratio(kept=3.0, most=3.0, total=4.0) == pytest.approx(1.0)
    assert error_ratio(kept=3.0, most=3.5, total=4.0) == pytest.approx(math.sqrt(2.0))
    assert error_ratio(kept=3.0, most=5.0, total=4.0) == math.inf
    assert error_ratio(kept=4.0, most=4.0, total=4.0) == pytest.approx(1.0)  # nothing is left but rounding


def test_a_bound_that_is_not_met_is_refused() -> None:
    stack, _ = with_spectrum(SPECTRA["nearly flat"], 90, 70)
    with pytest.raises(RouteFailed, match=r"certified .* after 3 products, not 1.0001"):
        by_subspace(stack, RANK, 1.0001, None, products=3)
