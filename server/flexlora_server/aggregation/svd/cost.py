"""Chooses the cheapest route for a shape, by a model of their cost in floating-point operations of a float64 matrix product.

A weight says how much longer than in such a product an operation takes elsewhere, measured on one thread (MKL, AVX-512, n
from 250 to 4,100): they differ between machines by tens of percent, the routes' work by factors.
"""

from collections.abc import Sequence

from flexlora_server.aggregation.svd.subspace import MAX_PRODUCTS, width

FLOAT32_COST = 0.6  # a product in float32
NARROW_COST = 1.5  # one with few columns, bound by memory
QR_COST = 2.5  # Householder reflections
EIGH_COST = 15.0  # n^3 of them, with vectors
SVD_COST = 35.0
STEP_OVERHEAD = 2e7  # operations: the fixed cost of a route, about 0.3 ms
# Products of the whole stack with a block that the subspace route usually needs, and as many with narrower blocks
TYPICAL_PRODUCTS = 6
# A less safe route is taken only at less than this share of the cost.
SAFEST_FIRST = ("svd", "qr", "eigh", "gram")
MAX_FASTER_RATIO = 0.7
# The subspace route may give up after more products than usual, so it must be cheaper still.
MAX_SUBSPACE_RATIO = 0.4


def choose_routes(d: int, R: int, k: int, rank: int, exact: bool) -> Sequence[str]:
    """The routes to try for W (d, k) from a stack of R columns, in order: the best first, then the safe ones."""
    costs = route_costs(d, R, k, rank)
    best = SAFEST_FIRST[0]
    for route in SAFEST_FIRST[1:]:
        if costs[route] < MAX_FASTER_RATIO * costs[best]:
            best = route
    safer = [route for route in SAFEST_FIRST[: SAFEST_FIRST.index(best)] if route in {"svd", "qr"}]
    exact_ones = [best, *sorted(safer, key=lambda route: costs[route])]
    if not exact and costs["subspace"] < MAX_SUBSPACE_RATIO * costs[best]:
        return ["subspace", *exact_ones]
    return exact_ones


def route_costs(d: int, R: int, k: int, rank: int) -> dict[str, float]:
    """The cost of each route, in operations."""
    both, n = d + k, min(d, k)
    m = min(R, n)
    dense = 2.0 * d * R * k
    columns = width(rank, d, k) + 16
    return {
        "svd": STEP_OVERHEAD + dense + 6.0 * max(d, k) * n**2 + SVD_COST * n**3,
        "qr": STEP_OVERHEAD
        + QR_COST * 2.0 * both * R * m
        + 2.0 * m**2 * R
        + SVD_COST * m**3
        + QR_COST * 4.0 * both * m * min(rank, m),
        "eigh": STEP_OVERHEAD + dense + 2.0 * d * k * n + EIGH_COST * n**3 + 2.0 * d * k * rank,
        "gram": STEP_OVERHEAD + 2.0 * both * R**2 + (4.0 + EIGH_COST) * R**3 + 2.0 * both * R * rank,
        "subspace": STEP_OVERHEAD * 10
        + TYPICAL_PRODUCTS * _product(both, R, columns)
        + 24 * EIGH_COST / 3 * columns**3,
    }


def max_products(d: int, R: int, k: int, rank: int) -> int:
    """The number of products after which the subspace route gives up: it spends at most half of the cost of the exact route."""
    costs = route_costs(d, R, k, rank)
    exact = min(costs[route] for route in SAFEST_FIRST)
    return max(4, min(MAX_PRODUCTS, int(exact / 2 / _product(d + k, R, width(rank, d, k) + 16))))


def _product(both: int, R: int, columns: int) -> float:
    """The cost of a product of the stack with a block, its orthonormal basis and eigenvalues, and one with a narrow block."""
    return (
        FLOAT32_COST * NARROW_COST * 2.0 * both * R * (columns + 32)
        + 4.0 * both * columns**2
        + 3 * EIGH_COST * columns**3
    )
