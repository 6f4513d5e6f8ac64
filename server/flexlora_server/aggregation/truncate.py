"""From a stack of factors to a published global update: the step the decomposing strategies share."""

import torch
from torch import Tensor

from flexlora_server.aggregation.errors import AggregationError
from flexlora_server.aggregation.factors import GlobalFactors, rounded
from flexlora_server.aggregation.strategy import Aggregate
from flexlora_server.aggregation.svd import TruncatedSVD, factored_svd

REPORTED = 64


def truncate(B: Tensor, A: Tensor, previous: GlobalFactors, dtype: torch.dtype) -> Aggregate:
    """W = B @ A at previous' rank: B = U Sigma, A = V^T.

    All of Sigma goes on B: the rows of A stay orthonormal, so a direction with sigma = 0 has B = 0 but A != 0
    and still trains (FlexLoRA: Bai et al. 2024, arXiv 2402.11505).
    """
    svd = factored_svd(B, A, previous.A.shape[0])
    factors = GlobalFactors(B=to_float32(svd.U * svd.S), A=rounded(svd.Vt, dtype))
    return Aggregate(factors, reported(svd), svd.total_energy)


def reported(svd: TruncatedSVD) -> tuple[float, ...]:
    """The singular values that are reported: the leading 64."""
    return tuple(svd.singular_values[:REPORTED].tolist())


def to_float32(B: Tensor) -> Tensor:
    """B as float32; raises AggregationError where the global update is too large for it."""
    single = B.to(torch.float32)
    if not bool(torch.isfinite(single).all()):
        raise AggregationError("the aggregated update does not fit into float32: an upload's values are far too large")
    return single
