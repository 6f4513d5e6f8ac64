"""Block subspace iteration on the factors, started from the previous round's directions, with a certificate.

Every product goes through the factors, W V = sum of s_b B_b (A_b V), in float32; small matrices are in float64. The block
alternates between the two sides of W, and after each product the certificate bounds the error of a truncation.
"""

import struct
from dataclasses import dataclass

import torch
from torch import Tensor

from flexlora_server.aggregation.svd.certificate import (
    FLOAT32_ROUNDING,
    FLOAT64_ROUNDING,
    ComplementProbe,
    Product,
    error_ratio,
    max_energy,
)
from flexlora_server.aggregation.svd.deflation import (
    MAX_SLACK_SHARE,
    DeflatedLanczos,
    Request,
    head_size,
    head_slack,
)
from flexlora_server.aggregation.svd.leading import LeadingTriplets, RouteFailed
from flexlora_server.aggregation.svd.small_matrices import eigh, eigvalsh, orthonormal, small_svd
from flexlora_server.aggregation.svd.stack import Stack

MAX_PRODUCTS = 16  # after which the route fails
MAX_DEFLATIONS = 2  # attempts at `DeflatedLanczos`
MAX_CANCELLATION = 100.0  # the norm of the terms may be so many times that of W
MIN_LOST_SHARE = 1e-6  # share of W's energy: below it the loss is mostly rounding of float32 products


def width(rank: int, d: int, k: int) -> int:
    """Columns of the iterated block: the requested rank and some more, which speed up the convergence."""
    return min(rank + min(16, max(8, rank // 8)), d, k)


def by_subspace(
    stack: Stack, rank: int, bound: float, start: Tensor | None, products: int = MAX_PRODUCTS
) -> LeadingTriplets:
    """The leading `rank` triplets, certified to `bound`; `start` (j, k) holds directions to begin with.

    Where float32 products leave too few digits of what the truncation loses, float64 ones go on from there.

    Raises:
        RouteFailed: no certificate within so many products, or terms that cancel too far, or numbers beyond float32.
    """
    try:
        return _iterate(stack, rank, bound, start, products, torch.float32)
    except _NeedsFloat64 as needed:
        return _iterate(stack, rank, bound, needed.directions, products, torch.float64)


class _NeedsFloat64(Exception):
    """The loss of a truncation is too small beside W for float32; `directions` (l, k) is the latest block."""

    def __init__(self, directions: Tensor) -> None:
        self.directions = directions


def _iterate(
    stack: Stack, rank: int, bound: float, start: Tensor | None, products: int, dtype: torch.dtype
) -> LeadingTriplets:
    d, _, k = stack.shape
    generator = torch.Generator().manual_seed(_seed(stack))
    forth, back = _finite(stack.times, dtype), _finite(stack.transposed_times, dtype)
    columns, attempts = width(rank, d, k), MAX_DEFLATIONS
    block = _Block.of(_start(start, k, columns, generator).to(stack.device), forth, back, None)
    ratio, product, spent = float("inf"), 0, 1.0
    while spent < products:
        product, spent = product + 1, spent + 1
        forth, back = back, forth
        Q, to_image = orthonormal(block.image)
        following, right = _Block.of(Q, forth, back, generator), product % 2 == 0
        truncation = _TruncationBound(block, following, to_image, rank, dtype)
        if product == 1:
            _check_cancelling(stack, truncation.total)
        if dtype == torch.float32 and truncation.lost < MIN_LOST_SHARE * truncation.total:
            raise _NeedsFloat64((following.Q if right else block.Q).mT)
        ratio = truncation.certify(bound)
        if ratio <= bound:
            return _leading(following.Q, following.image, rank, following.energy, ratio, right)
        if attempts and truncation.is_flat(bound):
            lanczos = _deflated(following, rank, (forth, back), generator)
            wanted = Request(rank, bound, max(stack.typical_norm, truncation.total**0.5), dtype)
            found = lanczos.run(wanted, truncation.lost)
            if found is not None:
                return _leading(found.Q, found.images, rank, found.energy, found.ratio, right)
            attempts, spent = attempts - 1, spent + lanczos.columns / columns
        block = following
    reached = f"{ratio:.4g} times the smallest error" if ratio < float("inf") else "nothing"
    raise RouteFailed(f"certified {reached} after {product + 1} products, not {bound:g}")


def _seed(stack: Stack) -> int:
    """A seed from the data: the same stack gives the same bytes, and a sender of one term cannot predict it."""
    return int.from_bytes(struct.pack("<d", stack.rank_one_norms)) >> 1


def _check_cancelling(stack: Stack, total: float) -> None:
    """Raise RouteFailed where W is so small beside its terms that their rounding in float32 would show."""
    size = total**0.5
    if stack.typical_norm > MAX_CANCELLATION * size:
        share = size / stack.typical_norm
        raise RouteFailed(f"the terms cancel to {share:.1e} of what they would be unrelated, too much for float32")


@dataclass(frozen=True)
class _Block:
    """An orthonormal Q (n, l) of one side, its image on the other, and what lies outside it; all float64."""

    Q: Tensor
    image: Tensor
    outside: ComplementProbe | None

    @classmethod
    def of(cls, Q: Tensor, forth: Product, back: Product, generator: torch.Generator | None) -> "_Block":
        """Without a generator nothing is learned of what lies outside."""
        if generator is None:
            return cls(Q, forth(Q).double(), None)
        outside = ComplementProbe(Q, forth, back, generator)
        images = forth(torch.cat([Q, outside.vectors], dim=1)).double()
        outside.begin(images[:, Q.shape[1] :])
        return cls(Q, images[:, : Q.shape[1]], outside)

    @property
    def energy(self) -> float:
        """|W|^2: what Q holds of it, and an estimate of what lies outside."""
        return float(self.image.square().sum()) + (self.outside.energy if self.outside else 0.0)


class _TruncationBound:
    """A bound on the error of the truncation of the second of two successive blocks."""

    def __init__(self, block: _Block, following: _Block, to_image: Tensor, rank: int, dtype: torch.dtype) -> None:
        self._rank, self._outside = rank, block.outside
        self._rounding = FLOAT32_ROUNDING if dtype == torch.float32 else FLOAT64_ROUNDING
        self._T = block.image.mT @ block.image  # Q^T M Q (l, l) of the first
        C = following.image @ to_image - block.Q @ self._T  # what M leads out of it
        self._CtC = C.mT @ C
        self._kept = float(eigvalsh(following.image.mT @ following.image)[:rank].sum())
        self.total = following.energy
        self.lost = self.total - self._kept
        theta, vectors = eigh(self._T)
        self._theta = theta[:rank]
        self._leaks = (vectors * (self._CtC @ vectors)).sum(dim=0)[:rank]

    def certify(self, bound: float) -> float:
        """The certified ratio of the truncation's error to the smallest possible; stops once `bound` is met or out of reach."""
        ratio = float("inf")
        if self._outside is None:
            return ratio
        while self._estimated_ratio(self._outside.best_upper_bound()) <= bound:
            if self._estimated_ratio(self._outside.upper_bound()) <= bound:
                ratio = self._proven_ratio(self._outside.upper_bound())
            if ratio <= bound or not self._outside.extend():
                break
        return ratio

    def is_flat(self, bound: float) -> bool:
        """Whether the spectrum is flat at the rank, and its head probably found well enough for `DeflatedLanczos`."""
        p, theta = head_size(self._theta, self._rank), self._theta
        if p == 0:
            return False
        coming = head_slack(theta[:p], self._leaks[:p], float(theta[-1])) * theta[-1] / theta[:p]
        return float(coming.sum()) < MAX_SLACK_SHARE * (bound**2 - 1) * self.lost

    def _estimated_ratio(self, mu: float) -> float:
        """An estimate of `_proven_ratio` without its many eigenvalues: each direction alone, coupled to one of size mu.

        An estimate below the kept energy is impossible: then more lies outside than was found, and it is reflected.
        """
        coupled = float(((self._theta + mu) / 2 + ((self._theta - mu).square() / 4 + self._leaks).sqrt()).sum())
        most = self._kept + abs(coupled - self._kept)
        return error_ratio(self._kept, most, self.total, self._rounding)

    def _proven_ratio(self, mu: float) -> float:
        most = max_energy(self._T, self._CtC, self._rank, mu)
        least = float(self._T.trace()) + (self._outside.energy_lower_bound() if self._outside else 0.0)
        return error_ratio(self._kept, most, least, self._rounding)


def _start(start: Tensor | None, k: int, columns: int, generator: torch.Generator) -> Tensor:
    """(k, columns) orthonormal: the given directions, then random ones."""
    known = torch.empty(k, 0, dtype=torch.float64) if start is None else start[:columns].mT.double().cpu()
    more = torch.randn(k, columns - known.shape[1], generator=generator, dtype=torch.float64)
    return orthonormal(torch.cat([known, more], dim=1))[0]


def _deflated(
    block: _Block, rank: int, products: tuple[Product, Product], generator: torch.Generator
) -> DeflatedLanczos:
    theta, vectors = eigh(block.image.mT @ block.image)
    p = max(1, head_size(theta, rank))
    return DeflatedLanczos((block.Q @ vectors, block.image @ vectors, theta), p, products, generator)


def _leading(Q: Tensor, image: Tensor, rank: int, energy: float, ratio: float, right: bool) -> LeadingTriplets:
    """The truncation of W QQ^T (for Q of the right side) or QQ^T W."""
    P, R = orthonormal(image)
    u, sigma, vt = small_svd(R)
    u, sigma, v = P @ u[:, :rank], sigma[:rank], Q @ vt[:rank].mT
    US, Vt = (u * sigma, v.mT) if right else (v * sigma, u.mT)
    return LeadingTriplets(US, sigma, Vt, sigma, energy, ratio)


def _finite(product: Product, dtype: torch.dtype) -> Product:
    def checked(block: Tensor) -> Tensor:
        result = product(block.to(dtype))
        if not bool(torch.isfinite(result).all()):
            raise RouteFailed(f"the products are too large for {str(dtype).removeprefix('torch.')}")
        return result

    return checked
