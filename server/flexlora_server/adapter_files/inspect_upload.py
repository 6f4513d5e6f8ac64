"""Checks a complete upload before it counts: the exact tensors, finite values, products that cannot overflow."""

import errno
import math
from io import BufferedReader
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flexlora_server.adapter_files.dtypes import DTYPES, Array, slice_dtype, to_dtype
from flexlora_server.adapter_files.global_adapter_numpy import NumpyGlobalAdapter
from flexlora_server.adapter_files.safetensors_writer import as_bytes
from flexlora_server.adapter_files.slicing import served_scaling, sliced_B
from flexlora_server.aggregation.strategies.registry import strategy
from flexlora_server.errors import Refusal
from flexlora_shared.header import HeaderError, TensorError, read_header
from flexlora_shared.layout import adapter_shapes, key_A, key_B, key_extra
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.messages.uploads import UploadCreate
from flexlora_shared.problems import Code
from flexlora_shared.ranks import by_pattern, lora_scaling, module_ranks

# Rank-one terms `scaling * ||b_j|| ||a_j||` may sum to this many norm bounds before they cancel. A decomposition of the stack of
# all updates has no digits below that sum (the noise floor in aggregation.svd): huge terms that cancel, at whatever weight,
# would erase the updates of all others. At 1e3 the floor stays below 1e-11 norm bounds.
MAX_CANCELLATION = 1e3
CHUNK_ELEMENTS = 1 << 18  # whose norm is computed at once: 2 MiB in float64


def check_upload(path: Path, spec: RunSpec, announced: UploadCreate, previous: NumpyGlobalAdapter) -> None:
    """Check an upload's file, one pair of tensors in memory at a time; `previous` is the update that its slice was cut from.

    Raises:
        Refusal: INVALID_HEADER, or INVALID_TENSOR that names the tensor and the reason.
    """
    with path.open("rb") as file:
        tensors = _Tensors(file, spec, announced)
        for module in spec.modules:
            _check_module(tensors, module.name, spec, announced, previous)
        for extra in spec.extra:
            key = key_extra(extra.name)
            _check_norm(key, _norm(key, tensors.read(key)), spec.norm_bound)


class _Tensors:
    """Reads the tensors of a file one at a time, after its header was checked. A memory-mapped file would stay resident."""

    def __init__(self, file: BufferedReader, spec: RunSpec, announced: UploadCreate) -> None:
        ranks = module_ranks(spec.modules, announced.rank, announced.rank_pattern)
        try:
            self._infos = read_header(file, announced.size, adapter_shapes(spec.modules, spec.extra, ranks))
        except HeaderError as error:
            raise Refusal(Code.INVALID_HEADER, f"{error}.") from None
        except TensorError as error:
            raise Refusal(Code.INVALID_TENSOR, f"{error}.", tensor=error.tensor) from None
        self._file, self._start = file, file.tell()

    def read(self, key: str) -> Array:
        """The tensor in the dtype it was sent in."""
        info = self._infos[key]
        array = np.empty(info.shape, DTYPES[info.dtype])
        self._file.seek(self._start + info.begin)
        if self._file.readinto(as_bytes(array)) < info.end - info.begin:
            raise OSError(errno.EIO, "the file is shorter than its header says", self._file.name)
        return array


def _check_module(
    tensors: _Tensors, module: str, spec: RunSpec, announced: UploadCreate, previous: NumpyGlobalAdapter
) -> None:
    """Check the factors of one module; they are freed before the next ones are read."""
    A, B = tensors.read(key_A(module)), tensors.read(key_B(module))
    scaling = upload_scaling(announced, module, A.shape[0])
    strategy_ = strategy(spec.strategy)
    _check_product(module, A, B, scaling, spec.norm_bound)
    if announced.trainable == "B":
        _check_frozen(key_A(module), A, previous.A(module, A.shape[0]), "B")
    elif strategy_.averages_factors:
        _check_norm(key_A(module), _norm(key_A(module), A), spec.norm_bound)
    if announced.trainable == "A":
        rank, dtype = B.shape[1], DTYPES[slice_dtype(spec)]
        _check_frozen(key_B(module), B, sliced_B(previous.Bt(module, rank), served_scaling(spec, rank), dtype), "A")
    elif strategy_.averages_factors:
        _check_norm(key_B(module), scaling * _norm(key_B(module), B), spec.norm_bound)


def upload_scaling(announced: UploadCreate, module: str, rank: int) -> float:
    """The scaling that a module of this upload, of this rank, was trained with."""
    return lora_scaling(rank, by_pattern(module, announced.alpha, announced.alpha_pattern), announced.use_rslora)


def _norm(key: str, array: Array) -> float:
    """The Frobenius norm in float64, computed in chunks; refuses a tensor that holds NaN or infinity."""
    flat = array.reshape(-1)
    pieces = (flat[start : start + CHUNK_ELEMENTS] for start in range(0, flat.size, CHUNK_ELEMENTS))
    with np.errstate(invalid="ignore"):  # NumPy would warn of a signalling NaN
        norm = math.hypot(*(float(np.linalg.norm(piece.astype(np.float64))) for piece in pieces))
    if not math.isfinite(norm):
        raise Refusal(
            Code.INVALID_TENSOR,
            f"tensor {key!r}: holds NaN or infinite values; lower the learning rate and train again.",
            tensor=key,
        )
    return norm


def _check_product(module: str, A: Array, B: Array, scaling: float, bound: float) -> None:
    """Bound the norm of `scaling * B @ A`, and the cancellation in it.

    The product of the factors' norms bounds both (Cauchy-Schwarz); where it is too large, the Gram matrices give exact values.
    """
    if scaling * _norm(key_A(module), A) * _norm(key_B(module), B) <= bound:
        return
    A64, B64 = A.astype(np.float64), B.astype(np.float64)
    norm = scaling * math.sqrt(max(0.0, float(np.sum((B64.T @ B64) * (A64 @ A64.T)))))
    _check_norm(key_B(module), norm, bound)
    terms = scaling * float(_row_norms(B64.T) @ _row_norms(A64))
    if not terms <= MAX_CANCELLATION * bound:
        raise Refusal(
            Code.INVALID_TENSOR,
            f"tensor {key_B(module)!r}: its columns times the rows of lora_A cancel; they sum to {terms:.3g} before they do, "
            f"more than {MAX_CANCELLATION:g} times the run's bound {bound:.3g}; lower the learning rate and train again.",
            tensor=key_B(module),
        )


def _row_norms(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """The norm of each row, without a temporary matrix of squares."""
    norms: NDArray[np.float64] = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    return norms


def _check_frozen(key: str, sent: Array, served: Array, trained: str) -> None:
    """Refuse a frozen factor that differs from the served one, in the dtype it was sent in: what is averaged belongs to that."""
    if not np.array_equal(sent, to_dtype(served, sent.dtype)):
        frozen = "AB".replace(trained, "")
        raise Refusal(
            Code.INVALID_TENSOR,
            f"tensor {key!r}: is not the one that was served; this round trains lora_{trained} alone (`trainable` of the task "
            f'is "{trained}"): freeze lora_{frozen}, train again and send it as it was served.',
            tensor=key,
        )


def _check_norm(key: str, norm: float, bound: float) -> None:
    if not norm <= bound:  # NaN too
        raise Refusal(
            Code.INVALID_TENSOR,
            f"tensor {key!r}: the update's norm {norm:.3g} exceeds the run's bound {bound:.3g}; "
            "lower the learning rate and train again.",
            tensor=key,
        )
