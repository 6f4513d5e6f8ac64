"""Block subspace iteration on the factors, started from the previous round's directions, with a certificate.

Every product goes through the factors, W V = sum of s_b B_b (A_b V), in float32; what is small is in float64. The block goes
to and fro between W's two sides, and after each product the certificate says how far from the best a truncation can be.
"""

import struct
from dataclasses import dataclass

import torch
from torch import Tensor

from flexlora_server.aggregation.svd.certificate import FLOAT32, FLOAT64, Outside, Product, certified, most_energy
from flexlora_server.aggregation.svd.leading import Leading, RouteFailed
from flexlora_server.aggregation.svd.small_matrices import eigh, eigvalsh, orthonormal, small_svd
from flexlora_server.aggregation.svd.stack import Stack

PRODUCTS = 16  # before it gives up
CANCELS = 100.0  # times W's norm that its terms may amount to before they cancel
FINE = 1e-6  # share of W's energy: what float32 products tell of less is mostly their own rounding


def width(rank: int, d: int, k: int) -> int:
    """Columns of the iterated block: the rank asked for and some more, which pay for themselves in accuracy."""
    return min(rank + max(8, rank // 8), d, k)


def by_subspace(stack: Stack, rank: int, bound: float, start: Tensor | None, products: int = PRODUCTS) -> Leading:
    """The leading `rank` triplets, certified to `bound`; `start` (j, k) holds directions to begin with.

    Where float32 products leave too few digits of what the truncation loses, float64 ones go on from there.

    Raises:
        RouteFailed: no certificate within so many products, or terms that cancel too far, or numbers beyond float32.
    """
    try:
        return _iterate(stack, rank, bound, start, products, torch.float32)
    except _TooFine as found:
        return _iterate(stack, rank, bound, found.directions, products, torch.float64)


class _TooFine(Exception):
    """What a truncation loses is too small beside W for float32; `directions` (l, k) are where it had come to."""

    def __init__(self, directions: Tensor) -> None:
        self.directions = directions


def _iterate(stack: Stack, rank: int, bound: float, start: Tensor | None, products: int, dtype: torch.dtype) -> Leading:
    d, _, k = stack.shape
    generator = torch.Generator().manual_seed(_seed(stack))
    forth, back = _finite(stack.times, dtype), _finite(stack.transposed_times, dtype)
    block = _Block.of(_start(start, k, width(rank, d, k), generator).to(stack.device), forth, back, generator)
    claimed = float("inf")
    for product in range(1, products):
        forth, back = back, forth
        Q, to_image = orthonormal(block.image)
        following = _Block.of(Q, forth, back, generator)
        claim = _Claim(block, following, to_image, rank, dtype)
        if product == 1:
            _check_cancelling(stack, claim.total)
        if dtype == torch.float32 and claim.left < FINE * claim.total:
            raise _TooFine((following.Q if product % 2 == 0 else block.Q).mT)
        claimed = claim.at_most(bound)
        if claimed <= bound:
            return _leading(following, rank, claimed, right=product % 2 == 0)
        block = following
    found = f"{claimed:.4g} times the smallest error" if claimed < float("inf") else "nothing"
    raise RouteFailed(f"certified {found} after {products} products, not {bound:g}")


def _seed(stack: Stack) -> int:
    """Of the data, so that the same stack gives the same bytes, and nobody who sends one term of it can foresee it."""
    return int.from_bytes(struct.pack("<d", stack.rank_one_norms)) >> 1


def _check_cancelling(stack: Stack, total: float) -> None:
    """Raise RouteFailed where W is so small beside its terms that their rounding in float32 would show."""
    size = total**0.5
    if stack.typical_norm > CANCELS * size:
        share = size / stack.typical_norm
        raise RouteFailed(f"the terms cancel to {share:.1e} of what they would be unrelated, too much for float32")


@dataclass(frozen=True)
class _Block:
    """An orthonormal Q (n, l) of one side, its image on the other, and what lies outside it; all float64."""

    Q: Tensor
    image: Tensor
    outside: Outside

    @classmethod
    def of(cls, Q: Tensor, forth: Product, back: Product, generator: torch.Generator) -> "_Block":
        outside = Outside(Q, forth, back, generator)
        images = forth(torch.cat([Q, outside.vectors], dim=1)).double()
        outside.begin(images[:, Q.shape[1] :])
        return cls(Q, images[:, : Q.shape[1]], outside)

    @property
    def energy(self) -> float:
        """|W|^2: what Q holds of it, and an estimate of what lies outside."""
        return float(self.image.square().sum()) + self.outside.energy


class _Claim:
    """What two successive blocks say about the truncation of the second."""

    def __init__(self, block: _Block, following: _Block, to_image: Tensor, rank: int, dtype: torch.dtype) -> None:
        self._rank, self._outside = rank, block.outside
        self._rounding = FLOAT32 if dtype == torch.float32 else FLOAT64
        self._T = block.image.mT @ block.image  # Q^T M Q (l, l) of the first
        C = following.image @ to_image - block.Q @ self._T  # what M leads out of it
        self._CtC = C.mT @ C
        self._kept = float(eigvalsh(following.image.mT @ following.image)[:rank].sum())
        self.total = following.energy
        self.left = self.total - self._kept
        theta, vectors = eigh(self._T)
        self._theta = theta[:rank]
        self._leaks = (vectors * (self._CtC @ vectors)).sum(dim=0)[:rank]

    def at_most(self, bound: float) -> float:
        """How far the truncation can be from the best, as a ratio; looks no closer than `bound` needs, or can get."""
        claimed = float("inf")
        while self._hoped(self._outside.reachable()) <= bound:
            if self._hoped(self._outside.largest()) <= bound:
                claimed = self._proven(self._outside.largest())
            if claimed <= bound or not self._outside.deepen():
                break
        return claimed

    def _hoped(self, mu: float) -> float:
        """About what `_proven` says, without its many eigenvalues: every direction apart, coupled to one of size mu.

        Less than what is kept already cannot be: then there is more outside than was seen, and as far from a proof.
        """
        coupled = float(((self._theta + mu) / 2 + ((self._theta - mu).square() / 4 + self._leaks).sqrt()).sum())
        most = self._kept + abs(coupled - self._kept)
        return certified(self._kept, most, self.total, self._rounding)

    def _proven(self, mu: float) -> float:
        most = most_energy(self._T, self._CtC, self._rank, mu)
        least = float(self._T.trace()) + self._outside.least_energy()
        return certified(self._kept, most, least, self._rounding)


def _start(start: Tensor | None, k: int, columns: int, generator: torch.Generator) -> Tensor:
    """(k, columns) orthonormal: the given directions, then random ones."""
    given = torch.empty(k, 0, dtype=torch.float64) if start is None else start[:columns].mT.double().cpu()
    more = torch.randn(k, columns - given.shape[1], generator=generator, dtype=torch.float64)
    return orthonormal(torch.cat([given, more], dim=1))[0]


def _leading(block: _Block, rank: int, claimed: float, right: bool) -> Leading:
    """The truncation of W QQ^T (for Q of the right side) or QQ^T W."""
    P, R = orthonormal(block.image)
    u, sigma, vt = small_svd(R)
    u, sigma, v = P @ u[:, :rank], sigma[:rank], block.Q @ vt[:rank].mT
    US, Vt = (u * sigma, v.mT) if right else (v * sigma, u.mT)
    return Leading(US, sigma, Vt, sigma, block.energy, claimed)


def _finite(product: Product, dtype: torch.dtype) -> Product:
    def checked(block: Tensor) -> Tensor:
        made = product(block.to(dtype))
        if not bool(torch.isfinite(made).all()):
            raise RouteFailed(f"the products are too large for {str(dtype).removeprefix('torch.')}")
        return made

    return checked
