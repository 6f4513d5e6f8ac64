"""Parts of synthetic rounds: orthonormal columns and singular values that fall geometrically; and factors multiplied."""

import torch
from torch import Tensor

from flexlora_server.aggregation.factors import GlobalFactors


def orthonormal(length: int, count: int, generator: torch.Generator) -> Tensor:
    """Random orthonormal columns (length, count), float64."""
    Q: Tensor = torch.linalg.qr(torch.randn(length, count, generator=generator, dtype=torch.float64)).Q
    return Q


def geometric(count: int, ratio: float, norm: float | None = None) -> Tensor:
    """1, ratio, ratio^2, ... (count,), float64; with `norm` multiplied so that they have it."""
    powers: Tensor = ratio ** torch.arange(count, dtype=torch.float64)
    return powers if norm is None else powers * (norm / float(powers.norm()))


def dense(factors: GlobalFactors) -> Tensor:
    """B A (d, k), float64."""
    return factors.B.double() @ factors.A.double()
