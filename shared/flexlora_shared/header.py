"""A strict reader of safetensors headers, for files that come from somebody else.

The safetensors library is memory-safe but sets no policy: it takes duplicate names, holes between tensors, absurd shapes and
headers of 100 MB. Both sides read this header first and hand the file to the library only when every tensor is the one expected.
Format: 8 bytes little-endian header length, that many bytes of JSON, then the tensors' bytes (the safetensors README, "Format").
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from flexlora_shared.layout import ACCEPTED_DTYPES, DTYPE_BYTES, header_limit


class HeaderError(ValueError):
    """The header is not a well-formed safetensors header of this file."""


class TensorError(ValueError):
    """A tensor is missing, unexpected or of the wrong dtype or shape; `tensor` is its key."""

    def __init__(self, tensor: str, reason: str) -> None:
        super().__init__(f"tensor {tensor!r}: {reason}")
        self.tensor = tensor


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of the header: its dtype by safetensors name, its shape, its bytes as [begin, end) after the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(file: BinaryIO, size: int, expected: Mapping[str, tuple[int, ...]]) -> dict[str, TensorInfo]:
    """The header of `file` (`size` bytes long), checked against the `expected` shapes by key.

    Raises:
        HeaderError: malformed, too long for the expected tensors, or its offsets leave holes or overlap.
        TensorError: a tensor is missing, unexpected, of another shape, or of a dtype that is not accepted.
    """
    tensors = {name: _tensor(name, entry) for name, entry in _entries(file, size, header_limit(expected))}
    for name in tensors:
        if name not in expected:
            raise TensorError(name, "this adapter has no such tensor; send exactly the tensors of the slice served")
    for name, shape in expected.items():
        if name not in tensors:
            raise TensorError(name, "is missing; send every tensor of the slice served")
        _check(name, tensors[name], shape)
    return tensors


def _entries(file: BinaryIO, size: int, limit: int) -> list[tuple[str, Any]]:
    prefix = file.read(8)
    if len(prefix) < 8:
        raise HeaderError(
            f"the file is {len(prefix)} bytes long; a safetensors file begins with 8 bytes of header length"
        )
    length = int.from_bytes(prefix, "little")
    if length > limit:
        raise HeaderError(f"the header claims {length} bytes; for these tensors at most {limit} are read")
    raw = file.read(length)
    if len(raw) < length:
        raise HeaderError(f"the header claims {length} bytes, the file ends after {len(raw)}")
    entries = _json_object(raw)
    _metadata(entries.pop("__metadata__", {}))
    tensors = [(name, entry) for name, entry in entries.items()]
    _contiguous(tensors, size - 8 - length)
    return tensors


def _json_object(raw: bytes) -> dict[str, Any]:
    """The header as JSON, no looser than the safetensors library reads it: it begins with a brace, -0 is no offset."""
    if not raw.startswith(b"{"):
        raise HeaderError("the header is not a JSON object")
    try:
        entries: dict[str, Any] = json.loads(raw.decode("utf-8"), object_pairs_hook=_pairs, parse_int=_whole)
    except HeaderError:
        raise
    except (ValueError, RecursionError) as error:  # ValueError: not UTF-8, not JSON, a number of thousands of digits
        raise HeaderError(f"the header is not JSON: {error}") from None
    return entries


def _whole(digits: str) -> int | float:
    return -0.0 if digits == "-0" else int(digits)


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for name, value in pairs:
        _text(name)
        if name in entries:
            raise HeaderError(f"the header names {name!r} twice")
        entries[name] = value
    return entries


def _text(text: str) -> None:
    """Refuse lone surrogates: Python reads them from JSON, but UTF-8 cannot encode them."""
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise HeaderError(f"{text[:100]!r} is not Unicode text")


def _metadata(metadata: Any) -> None:
    texts = isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
    if not texts:
        raise HeaderError("__metadata__ must map texts to texts")
    for value in metadata.values():
        _text(value)


def _natural(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _contiguous(entries: list[tuple[str, Any]], body: int) -> None:
    """Check that the tensors' bytes cover the file's body exactly: no holes, no overlaps."""
    spans = []
    for name, entry in entries:
        offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
        if not (isinstance(offsets, list) and len(offsets) == 2 and all(_natural(n) for n in offsets)):
            raise HeaderError(f"data_offsets of {name!r} must be two whole numbers")
        spans.append((offsets[0], offsets[1], name))
    position = 0
    for begin, end, name in sorted(spans):
        if begin != position or end < begin:
            raise HeaderError(f"the bytes of {name!r} are [{begin}, {end}); they must begin at {position}")
        position = end
    if position != body:
        raise HeaderError(f"the tensors take {position} bytes, the file holds {body} after its header")


def _tensor(name: str, entry: dict[str, Any]) -> TensorInfo:
    if set(entry) != {"dtype", "shape", "data_offsets"}:
        raise HeaderError(f"the entry of {name!r} must have exactly dtype, shape and data_offsets")
    dtype, shape = entry["dtype"], entry["shape"]
    if not isinstance(dtype, str):
        raise HeaderError(f"the dtype of {name!r} must be a text")
    if not (isinstance(shape, list) and len(shape) <= 8 and all(_natural(n) for n in shape)):
        raise HeaderError(f"the shape of {name!r} must be at most 8 whole numbers")
    begin, end = entry["data_offsets"]
    return TensorInfo(dtype, tuple(shape), begin, end)


def _check(name: str, tensor: TensorInfo, shape: tuple[int, ...]) -> None:
    if tensor.dtype not in ACCEPTED_DTYPES:
        raise TensorError(name, f"dtype {tensor.dtype[:16]} is not accepted; send F32, F16 or BF16")
    if tensor.shape != shape:
        raise TensorError(name, f"shape {list(tensor.shape)} instead of {list(shape)}")
    needed = math.prod(shape) * DTYPE_BYTES[tensor.dtype]
    if tensor.end - tensor.begin != needed:
        raise HeaderError(f"{name!r} takes {tensor.end - tensor.begin} bytes; its shape and dtype need {needed}")
