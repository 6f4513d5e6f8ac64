"""The methods of truncated SVD that are compared: dense ones as people write them, and this project's engine.

A dense way has two parts, the sum W, the same for all, and its factorisation, which takes as long whoever takes part.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.lib.svd.synthetic_rounds import Round
from flexlora_server.aggregation.svd import cost
from flexlora_server.aggregation.svd.stack import Stack
from flexlora_server.aggregation.svd.truncated_svd import decompose

BOUND = 1.02  # of the certified answers


@dataclass(frozen=True)
class Found:
    """A truncated SVD; which way it came, and the ratio to the smallest error that was claimed."""

    US: Tensor
    S: Tensor
    Vt: Tensor
    route: str
    certificate: float | None = None


@dataclass(frozen=True)
class Dense:
    """A method that factorises the dense sum of a stack."""

    name: str
    factorise: Callable[[Tensor, int], Found]
    for_any_rank: bool = True  # the time depends on W's shape alone
    first_only: bool = False  # compared in the first round of a shape, and left out of the others

    def begin(self) -> None:
        """Once before the clock runs: libraries are loaded when they are first used."""
        self.factorise(torch.eye(8), 2)


def torch_sum(stack: Stack) -> Tensor:
    """Sum of s_i B_i A_i in float32, each a dense matrix first, as the FlexLoRA authors' code does."""
    d, _, k = stack.shape
    W = torch.zeros(d, k)
    for term in stack.terms:
        W.add_(term.B @ term.A, alpha=term.scale)
    return W


def by_torch(W: Tensor, rank: int) -> Found:
    """All of the SVD, of which `rank` triplets are kept."""
    return _kept(torch.linalg.svd(W, full_matrices=False), rank, "gesdd")


def by_torch64(W: Tensor, rank: int) -> Found:
    """The same in float64."""
    return _kept(torch.linalg.svd(W.double(), full_matrices=False), rank, "gesdd")


def by_numpy(W: Tensor, rank: int) -> Found:
    """numpy's, by its own OpenBLAS; it computes in float64 and rounds the result."""
    import numpy as np

    return _kept(map(torch.from_numpy, np.linalg.svd(W.numpy(), full_matrices=False)), rank, "gesdd")


def by_scipy(W: Tensor, rank: int) -> Found:
    """scipy's, by its own OpenBLAS."""
    from scipy.linalg import svd

    return _kept(map(torch.from_numpy, svd(W.numpy(), full_matrices=False)), rank, "gesdd")


def by_sklearn(W: Tensor, rank: int) -> Found:
    """Randomised, with the library's defaults: ten columns more than asked for, four or seven iterations."""
    from sklearn.utils.extmath import randomized_svd

    return _kept(
        map(torch.from_numpy, randomized_svd(W.numpy(), n_components=rank, random_state=0)), rank, "randomized"
    )


def _kept(factors: Iterable[Tensor], rank: int, route: str) -> Found:
    U, S, Vt = factors
    return Found(U[:, :rank] * S[:rank], S[:rank].clone(), Vt[:rank].clone(), route)  # clones let the rest go


DENSE = Dense("dense", by_torch)
LIBRARIES = (
    Dense("dense64", by_torch64, first_only=True),
    Dense("sklearn", by_sklearn, for_any_rank=False),
    Dense("scipy", by_scipy, first_only=True),
    Dense("numpy", by_numpy),
)


def ours(given: Round, bound: float, start: Tensor | None) -> Found:
    """The engine's answer."""
    svd = decompose(given.stack, given.V.shape[0], bound, start)
    return Found(svd.US, svd.S, svd.Vt, svd.route, svd.certificate)


def iterates(given: Round) -> bool:
    """Whether the engine would iterate where it need not be exact."""
    d, R, k = given.stack.shape
    return cost.choose_routes(d, R, k, given.V.shape[0], exact=False)[0] == "subspace"
