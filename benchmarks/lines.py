"""One line of the aggregation benchmark: a method on a round, its figures, and the floor under them."""

import json
from dataclasses import asdict, dataclass, fields

WHOLE = "whole"
REUSED = "accumulation + SVD of the same shape"


def floor_operations(d: int, k: int, R: int, r: int, certified: bool) -> float:
    """The matrix products that no such method can do without.

    Exact: both Gram matrices of the stack and both back-projections of r vectors; or, where R > min(d, k), W and its
    product with r vectors, if that is less. Certified: two products of the stack with r columns, to and fro.
    """
    if certified:
        return 4.0 * (d + k) * R * r
    factored = 2.0 * (d + k) * R * R + 2.0 * (d + k) * R * r
    dense = 2.0 * d * k * R + 2.0 * d * k * r
    return min(factored, dense) if min(d, k) < R else factored


@dataclass(frozen=True)
class Where:
    """What was aggregated."""

    d: int
    k: int
    participants: int
    ranks: str
    data: str
    total_rank: int
    r_max: int


@dataclass(frozen=True)
class Line:
    """The figures, under the names that --json prints."""

    method: str
    route: str
    d: int
    k: int
    participants: int
    total_rank: int
    r_max: int
    seconds: float
    dense_seconds: float
    ratio_dense: float
    floor_seconds: float
    ratio_floor: float
    error_over_optimal: float | None
    peak_mib: float | None
    ranks: str
    data: str
    certificate: float | None
    runs: int
    singular_values_error: float | None
    gemm_gflops: float
    dense_measured: str

    def json(self) -> str:
        return json.dumps(asdict(self))

    def row(self) -> str:
        """For people, under `heading`."""
        cells = [
            f"{self.method:9} {self.route:10}",
            f"{self.seconds:9.3f} {self.ratio_dense:9.1f} {self.floor_seconds:9.4f} {self.ratio_floor:9.1f}",
            _or_dash(self.error_over_optimal, "11.7f", 11),
            _or_dash(self.certificate, "9.5f", 9),
            _or_dash(self.singular_values_error, "9.1e", 9),
            _or_dash(self.peak_mib, "8.0f", 8),
            f"{self.runs:4} {self.gemm_gflops:6.0f}",
        ]
        return " ".join(cells)


def heading(where: "Where | Line") -> str:
    """The two lines above the rows of one round."""
    about = (
        f"\n{where.d} x {where.k}, {where.participants} participants, ranks {where.ranks}, data {where.data}: "
        f"R = {where.total_rank}, r_max = {where.r_max}"
    )
    return (
        f"{about}\n{'method':9} {'route':10} {'seconds':>9} {'dense/s':>9} {'floor':>9} {'s/floor':>9} "
        f"{'error/best':>11} {'claimed':>9} {'sv error':>9} {'peak MiB':>8} {'runs':>4} {'GFLOPS':>6}"
    )


def _or_dash(value: float | None, form: str, width: int) -> str:
    return f"{'-':>{width}}" if value is None else format(value, form)


KEYS = tuple(field.name for field in fields(Line))
