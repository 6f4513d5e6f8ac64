"""Metrics of one aggregated module that show rank collapse and truncation loss."""

import math
from collections.abc import Sequence

from torch import Tensor

from flexlora_server.aggregation.truncate import Aggregate
from flexlora_server.errors import AggregationError

MAX_SQUARE = 1e20  # to which float32 sums squares, with room to its ends


def energy_kept(aggregate: Aggregate, ranks: Sequence[int]) -> tuple[tuple[int, float], ...]:
    """(rank, share of W's squared Frobenius norm in the slice of that rank) for each of `ranks`; 1.0 where W = 0.

    The energy of a prefix is the sum of the leading block of (B^T B) * (A A^T), which needs no dense product
    and no orthonormal A. Raises AggregationError for a rank that is not served.
    """
    products = _gram(aggregate.factors.B.mT) * _gram(aggregate.factors.A)
    blocks = products.cumsum(0).cumsum(1).diagonal().tolist()
    for rank in ranks:
        if not 1 <= rank <= len(blocks):
            raise AggregationError(f"rank {rank} is not served: the global update holds ranks 1 to {len(blocks)}")
    if aggregate.total_energy == 0:
        return tuple((rank, 1.0) for rank in ranks)
    return tuple((rank, min(1.0, max(0.0, blocks[rank - 1] / aggregate.total_energy))) for rank in ranks)


def _gram(rows: Tensor) -> Tensor:
    """X X^T, float64; multiplied in float32 where that holds the squares."""
    gram: Tensor = (rows @ rows.mT).double()
    if not 1 / MAX_SQUARE < float(gram.diagonal().max()) < MAX_SQUARE:
        gram = rows.double() @ rows.double().mT
    return gram


def effective_rank(singular_values: Sequence[float]) -> float:
    """exp of the entropy of the singular values' shares, 0 for W = 0 (Roy and Vetterli 2007, EUSIPCO).

    Between 1 (one direction) and the number of values (all equal).
    """
    total = math.fsum(singular_values)
    if total == 0:
        return 0.0
    shares = [value / total for value in singular_values if value > 0]
    return math.exp(-math.fsum(share * math.log(share) for share in shares))
