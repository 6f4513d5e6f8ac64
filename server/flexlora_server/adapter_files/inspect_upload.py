"""Looks into a complete upload before it may count: exact tensors, finite values, products that cannot overflow."""

import errno
import math
from io import BufferedReader
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flexlora_server.adapter_files.dtypes import DTYPES, Array, to_dtype
from flexlora_server.adapter_files.global_adapter_numpy import StoredRows
from flexlora_server.adapter_files.safetensors_writer import as_bytes
from flexlora_server.aggregation.strategies.registry import strategy
from flexlora_server.errors import Refusal
from flexlora_shared.header import HeaderError, TensorError, read_header
from flexlora_shared.layout import adapter_shapes, key_A, key_B, key_extra
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.messages.uploads import UploadCreate
from flexlora_shared.problems import Code
from flexlora_shared.ranks import by_pattern, lora_scaling, module_ranks

# Rank-one terms `scaling * ||b_j|| ||a_j||` may sum to this many norm bounds before they cancel. A decomposition of everybody's
# stack has no digits below that sum (the noise floor in aggregation.svd): huge terms whose product is nothing, at whatever
# weight, would erase the updates of all others. At 1e3 the floor stays below 1e-11 norm bounds.
MOST_CANCELLATION = 1e3
PIECE = 1 << 18  # numbers of which the norm is computed at once: 2 MiB in float64


def inspect(path: Path, spec: RunSpec, told: UploadCreate, previous: StoredRows) -> None:
    """Check an upload's file, one tensor pair in memory at a time; `previous` is what its slice was cut from.

    Raises:
        Refusal: INVALID_HEADER, or INVALID_TENSOR that names the tensor and the reason.
    """
    with path.open("rb") as file:
        tensors = _Tensors(file, spec, told)
        for module in spec.modules:
            _check_module(tensors, module.name, spec, told, previous)
        for extra in spec.extra:
            key = key_extra(extra.name)
            _check_norm(key, _norm(key, tensors.read(key)), spec.norm_bound)


class _Tensors:
    """Reads a checked file's tensors one at a time. Mapped, the whole file would stay resident while it is looked at."""

    def __init__(self, file: BufferedReader, spec: RunSpec, told: UploadCreate) -> None:
        ranks = module_ranks((module.name for module in spec.modules), told.rank, told.rank_pattern)
        try:
            self._infos = read_header(file, told.size, adapter_shapes(spec.modules, spec.extra, ranks))
        except HeaderError as error:
            raise Refusal(Code.INVALID_HEADER, f"{error}.") from None
        except TensorError as error:
            raise Refusal(Code.INVALID_TENSOR, f"{error}.", tensor=error.tensor) from None
        self._file, self._start = file, file.tell()

    def read(self, key: str) -> Array:
        """The tensor as it was sent."""
        info = self._infos[key]
        array = np.empty(info.shape, DTYPES[info.dtype])
        self._file.seek(self._start + info.begin)
        if self._file.readinto(as_bytes(array)) < info.end - info.begin:
            raise OSError(errno.EIO, "the file is shorter than its header says", self._file.name)
        return array


def _check_module(tensors: _Tensors, module: str, spec: RunSpec, told: UploadCreate, previous: StoredRows) -> None:
    """A function of its own: its tensors are gone before the next ones are read."""
    A, B, scaling = tensors.read(key_A(module)), tensors.read(key_B(module)), upload_scaling(told, module)
    rule = strategy(spec.strategy)
    _check_product(module, A, B, scaling, spec.norm_bound)
    if rule.agents_train == "B":
        _check_frozen(module, A, previous)
    elif rule.averages_factors:
        _check_norm(key_A(module), _norm(key_A(module), A), spec.norm_bound)
    if rule.averages_factors:
        _check_norm(key_B(module), scaling * _norm(key_B(module), B), spec.norm_bound)


def upload_scaling(told: UploadCreate, module: str) -> float:
    """The scaling a module of this upload was trained with."""
    rank = by_pattern(module, told.rank, told.rank_pattern)
    return lora_scaling(rank, by_pattern(module, told.alpha, told.alpha_pattern), told.use_rslora)


def _norm(key: str, array: Array) -> float:
    """The Frobenius norm in float64, of a piece at a time; refuses a tensor that holds NaN or infinity."""
    flat = array.reshape(-1)
    pieces = (flat[start : start + PIECE] for start in range(0, flat.size, PIECE))
    with np.errstate(invalid="ignore"):  # of a signalling NaN NumPy would warn, too
        norm = math.hypot(*(float(np.linalg.norm(piece.astype(np.float64))) for piece in pieces))
    if not math.isfinite(norm):
        raise Refusal(
            Code.INVALID_TENSOR,
            f"tensor {key!r}: holds NaN or infinite values; lower the learning rate and train again.",
            tensor=key,
        )
    return norm


def _check_product(module: str, A: Array, B: Array, scaling: float, bound: float) -> None:
    """Bound the norm of `scaling * B @ A`, and what cancels in it.

    By the factors' norms where they suffice (by Cauchy-Schwarz they bound both), else exactly by the Gram matrices.
    """
    if scaling * _norm(key_A(module), A) * _norm(key_B(module), B) <= bound:
        return
    A64, B64 = A.astype(np.float64), B.astype(np.float64)
    norm = scaling * math.sqrt(max(0.0, float(np.sum((B64.T @ B64) * (A64 @ A64.T)))))
    _check_norm(key_B(module), norm, bound)
    terms = scaling * float(_norms(B64.T) @ _norms(A64))
    if not terms <= MOST_CANCELLATION * bound:
        raise Refusal(
            Code.INVALID_TENSOR,
            f"tensor {key_B(module)!r}: its columns times the rows of lora_A cancel; they sum to {terms:.3g} before they do, "
            f"more than {MOST_CANCELLATION:g} times the run's bound {bound:.3g}; lower the learning rate and train again.",
            tensor=key_B(module),
        )


def _norms(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each row, without another matrix of squares."""
    norms: NDArray[np.float64] = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    return norms


def _check_frozen(module: str, A: Array, previous: StoredRows) -> None:
    """Refuse another lora_A than the one served, in the dtype it was sent in: averaged, B would meet the served one."""
    if not np.array_equal(A, to_dtype(previous.A(module, A.shape[0]), A.dtype)):
        raise Refusal(
            Code.INVALID_TENSOR,
            f"tensor {key_A(module)!r}: is not the one that was served; this run trains lora_B alone (`trainable` of the task "
            'is "B"): freeze lora_A, train again and send it as it was served.',
            tensor=key_A(module),
        )


def _check_norm(key: str, norm: float, bound: float) -> None:
    if not norm <= bound:  # NaN too
        raise Refusal(
            Code.INVALID_TENSOR,
            f"tensor {key!r}: the update's norm {norm:.3g} exceeds the run's bound {bound:.3g}; "
            "lower the learning rate and train again.",
            tensor=key,
        )
