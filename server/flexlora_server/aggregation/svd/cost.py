"""Which route is cheapest for a shape: a model of their work, in floating-point operations of a float64 matrix product.

The weights are how much longer than in such a product an operation takes elsewhere, measured on one thread (MKL, AVX-512, n
from 250 to 4,100): they differ between machines by tens of percent, the routes' work by factors.
"""

from collections.abc import Sequence

from flexlora_server.aggregation.svd.subspace import PRODUCTS, width

FLOAT32 = 0.6  # a product in float32
SKINNY = 1.5  # one with few columns, bound by memory
QR = 2.5  # Householder reflections
EIGH = 15.0  # n^3 of them, with vectors
SVD = 35.0
FIXED = 2e7  # operations: what starting any of a route's steps costs, about 0.3 ms in all
# Products of the whole stack with a block that a subspace needs, and as many with the narrower blocks outside it
USUAL = 6
# Safest first. One is passed over only for another at less than this share of its work.
SAFEST = ("svd", "qr", "eigh", "gram")
CLEARLY = 0.7
# A subspace may need more than usual and then give up, so it must promise more than that.
MUCH = 0.4


def routes(d: int, R: int, k: int, rank: int, exact: bool) -> Sequence[str]:
    """The routes to try for W (d, k) from a stack of R columns, in order: the best first, then the safe ones."""
    work = works(d, R, k, rank)
    best = SAFEST[0]
    for route in SAFEST[1:]:
        if work[route] < CLEARLY * work[best]:
            best = route
    safer = [route for route in SAFEST[: SAFEST.index(best)] if route in {"svd", "qr"}]
    exact_ones = [best, *sorted(safer, key=lambda route: work[route])]
    if not exact and work["subspace"] < MUCH * work[best]:
        return ["subspace", *exact_ones]
    return exact_ones


def works(d: int, R: int, k: int, rank: int) -> dict[str, float]:
    """Each route's work."""
    both, n = d + k, min(d, k)
    m = min(R, n)
    dense = 2.0 * d * R * k
    columns = width(rank, d, k) + 16
    return {
        "svd": FIXED + dense + 6.0 * max(d, k) * n**2 + SVD * n**3,
        "qr": FIXED + QR * 2.0 * both * R * m + 2.0 * m**2 * R + SVD * m**3 + QR * 4.0 * both * m * min(rank, m),
        "eigh": FIXED + dense + 2.0 * d * k * n + EIGH * n**3 + 2.0 * d * k * rank,
        "gram": FIXED + 2.0 * both * R**2 + (4.0 + EIGH) * R**3 + 2.0 * both * R * rank,
        "subspace": FIXED * 10 + USUAL * _product(both, R, columns) + 24 * EIGH / 3 * columns**3,
    }


def products(d: int, R: int, k: int, rank: int) -> int:
    """After how many products a subspace gives up: it spends no more than half of what the exact route will."""
    work = works(d, R, k, rank)
    exact = min(work[route] for route in SAFEST)
    return max(4, min(PRODUCTS, int(exact / 2 / _product(d + k, R, width(rank, d, k) + 16))))


def _product(both: int, R: int, columns: int) -> float:
    """One of the stack with a block, made orthonormal and looked at; and one with a narrow block, as slow as a third of it."""
    return FLOAT32 * SKINNY * 2.0 * both * R * (columns + 32) + 4.0 * both * columns**2 + 3 * EIGH * columns**3
