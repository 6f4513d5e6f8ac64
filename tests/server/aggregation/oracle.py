"""An independent oracle for the mathematics: dense matrices, float64 numpy, nothing of the coordinator's code.

W = sum of p_i s_i B_i A_i as a plain sum of d x k matrices, truncation by `np.linalg.svd`, rounding to bfloat16 by
hand. Tests of other parts import it to judge what came back over the wire.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Upload:
    """One participant: lora_A (r, k), lora_B (d, r), scaling, weight; and the dense product it was served."""

    A: Matrix
    B: Matrix
    scaling: float
    weight: float
    served: Matrix | None = None

    @property
    def product(self) -> Matrix:
        return self.scaling * (self.B @ self.A)


def averaged(uploads: Iterable[Upload]) -> Matrix:
    """The paper's W: the weighted sum of the participants' products."""
    W: Matrix = np.sum([upload.weight * upload.product for upload in uploads], axis=0, dtype=np.float64)
    return W


def banded(uploads: Sequence[Upload]) -> Matrix:
    """The products direction by direction, each averaged over those whose rank reaches it."""
    W = np.zeros((uploads[0].B.shape[0], uploads[0].A.shape[1]))
    for j in range(max(len(upload.A) for upload in uploads)):
        holders = [upload for upload in uploads if len(upload.A) > j]
        share = sum(upload.weight for upload in holders)
        for one in holders:
            W += one.weight / share * one.scaling * np.outer(one.B[:, j], one.A[j])
    return W


def residual(D_old: Matrix, uploads: Iterable[Upload]) -> Matrix:
    """D_old plus the weighted sum of what each participant changed in what it was served."""
    W = D_old.copy()
    for upload in uploads:
        assert upload.served is not None
        W += upload.weight * (upload.product - upload.served)
    return W


def leaky(D_old: Matrix, uploads: Sequence[Upload], leak: float) -> Matrix:
    """What was uploaded, and all but the share `leak` of D_old less what was served."""
    W = averaged(uploads) + (1 - leak) * D_old
    for upload in uploads:
        assert upload.served is not None
        W -= (1 - leak) * upload.weight * upload.served
    return W


def shrunk(W: Matrix, uploads: Sequence[Upload], shrink: float, r_max: int) -> Matrix:
    """The first r_max singular values of W, less `shrink` times the disagreement where not everybody holds them."""
    changes = [(one.weight, one.product - one.served) for one in uploads if one.served is not None]
    mean = np.sum([weight * change for weight, change in changes], axis=0)
    spread = sum(weight * float(np.sum(change**2)) for weight, change in changes) - float(np.sum(mean**2))
    absent = [sum(one.weight for one in uploads if len(one.A) <= j) for j in range(r_max)]
    values: Matrix = singular_values(W)[:r_max] - shrink * (max(0.0, spread) / r_max) ** 0.5 * np.array(absent)
    return values.clip(min=0)


def truncated(W: Matrix, rank: int) -> Matrix:
    """The best approximation of W at that rank."""
    U, sigma, Vt = np.linalg.svd(W, full_matrices=False)
    best: Matrix = (U[:, :rank] * sigma[:rank]) @ Vt[:rank]
    return best


def singular_values(W: Matrix) -> Matrix:
    return np.asarray(np.linalg.svd(W, compute_uv=False), dtype=np.float64)


def relative_error(got: Matrix, want: Matrix) -> float:
    """Frobenius norm of the difference, relative to `want`; absolute where `want` is zero."""
    size = float(np.linalg.norm(want))
    return float(np.linalg.norm(got - want)) / (size if size > 0 else 1.0)


def has_gap(W: Matrix, rank: int, gap: float = 1e-6) -> bool:
    """Whether the best rank-`rank` approximation is unique to float32 accuracy: sigma_r and sigma_r+1 differ."""
    sigma = np.append(singular_values(W), np.zeros(rank + 1))
    return bool(sigma[rank - 1] - sigma[rank] > gap * sigma[0] or sigma[rank - 1] <= 1e-12 * sigma[0])


def energy_kept(W: Matrix, ranks: Sequence[int]) -> list[float]:
    """The share of the squared Frobenius norm that the best approximation keeps at each rank."""
    energy = singular_values(W) ** 2
    return [float(energy[:rank].sum() / energy.sum()) for rank in ranks]


def rounded(x: Matrix, dtype: str) -> Matrix:
    """`x` rounded to float32, then to nearest even in "float32", "float16" or "bfloat16"."""
    single = x.astype(np.float32)
    if dtype == "float16":
        return single.astype(np.float16).astype(np.float64)
    if dtype == "bfloat16":
        bits = single.view(np.uint32)
        bits = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
        return bits.view(np.float32).astype(np.float64)
    return single.astype(np.float64)


def to_numpy(tensor: Any) -> Matrix:
    """A torch tensor of any float dtype as float64."""
    array: Matrix = tensor.double().numpy()
    return array
