"""One line of the aggregation benchmark: a method on a round, its figures, and the floor under them."""

import json
import math
from dataclasses import asdict, dataclass, fields

WHOLE = "whole"
REUSED = "accumulation + SVD of the same shape"


def floor_operations(d: int, k: int, R: int, r: int, iterates: bool, sums: bool) -> float:
    """The matrix products of a method of that kind alone, as if all else took no time: a yardstick, no lower bound.

    Exact: both Gram matrices of the stack and both back-projections of r vectors; or W and its product with r vectors, if
    that is less. Whoever iterates: a block of r columns through the stack to and fro, once; or W, and the block through W.
    Whoever sums dense matrices first: always the latter. A Gram matrix counts as a full matrix product: it is symmetric,
    and making only half of it would halve these.
    """
    passes = 2 if iterates else 1
    dense = 2.0 * d * k * R + passes * 2.0 * d * k * r
    factored = 2.0 * (d + k) * R * r * passes + (0.0 if iterates else 2.0 * (d + k) * R * R)
    return dense if sums else min(factored, dense)


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
    share_of_figures: float | None
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
        return json.dumps(asdict(self), allow_nan=False)

    def row(self) -> str:
        """For people, under `heading`."""
        cells = [
            f"{self.method:9} {self.route:10}",
            f"{self.seconds:9.3f} {self.ratio_dense:9.1f} {_or_dash(self.share_of_figures, '8.0%', 8)}",
            f"{self.floor_seconds:9.4f} {self.ratio_floor:9.1f}",
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
        f"{about}\n{'method':9} {'route':10} {'seconds':>9} {'dense/s':>9} {'figures':>8} {'floor':>9} {'s/floor':>9} "
        f"{'error/best':>11} {'claimed':>9} {'sv error':>9} {'peak MiB':>8} {'runs':>4} {'GFLOPS':>6}"
    )


def finite(value: float | None) -> float | None:
    """JSON knows no others."""
    return value if value is not None and math.isfinite(value) else None


def _or_dash(value: float | None, form: str, width: int) -> str:
    return f"{'-':>{width}}" if value is None else format(value, form)


KEYS = tuple(field.name for field in fields(Line))
