"""Updates of which each has a direction of its own: B·A = e_i e_iᵀ, so a published W tells what was counted how often."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save

from flexlora_shared.layout import key_A, key_B

MODULE, SIZE = "layer", 32  # one square module
RANKS = (1, 2, 3, 16)  # the largest holds more updates than a round can have
SCALING = 2.0


@dataclass(frozen=True)
class OneHot:
    """An update's bytes, and what of it the result must show."""

    direction: int
    rank: int
    examples: int
    data: bytes
    sha256: str


def one_hot(direction: int, rank: int) -> OneHot:
    """The update of this direction; its weight differs from its neighbours'."""
    A, B = np.zeros((rank, SIZE), np.float32), np.zeros((SIZE, rank), np.float32)
    A[0, direction % SIZE] = B[direction % SIZE, 0] = 1
    data = save({key_A(MODULE): A, key_B(MODULE): B})
    return OneHot(direction, rank, 1 + direction % 5, data, hashlib.sha256(data).hexdigest())


def product(stored: Path, rank: int | None = None) -> NDArray[np.float64]:
    """W over the scaling of a stored global update, or of its first `rank` directions."""
    with safe_open(stored, framework="numpy") as file:
        Bt, A = file.get_tensor(f"{MODULE}.Bt").astype(float), file.get_tensor(f"{MODULE}.A").astype(float)
    W: NDArray[np.float64] = Bt[:rank].T @ A[:rank] / SCALING
    return W


def counted(stored: Path) -> NDArray[np.float64]:
    """The diagonal of a stored global update's W over the scaling: each direction's share.

    Raises:
        ValueError: W has something beside its diagonal.
    """
    W = product(stored)
    shares = W.diagonal().copy()
    if np.abs(W - np.diag(shares)).max() > 1e-5:
        raise ValueError("the global update has something beside the diagonal")
    return shares
