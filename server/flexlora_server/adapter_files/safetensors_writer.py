"""Writes a safetensors file tensor by tensor, so that only one module of an adapter is in memory at a time.

The safetensors library writes only from a complete dictionary of tensors. Format: the safetensors README, "Format".
"""

import json
import math
from collections.abc import Mapping
from typing import BinaryIO

import numpy as np

from flexlora_server.adapter_files.dtypes import DTYPES, Array
from flexlora_shared.layout import DTYPE_BYTES

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class TensorWriter:
    """Writes the tensors announced in `tensors` (key -> dtype, shape), in that order, after a complete header."""

    def __init__(self, file: BinaryIO, tensors: Mapping[str, tuple[np.dtype[np.generic], tuple[int, ...]]]) -> None:
        self._file = file
        self._expected = list(tensors.items())
        self._next = 0
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        position = 0
        for key, (dtype, shape) in tensors.items():
            name = _NAMES[dtype]
            end = position + math.prod(shape) * DTYPE_BYTES[name]
            header[key] = {"dtype": name, "shape": list(shape), "data_offsets": [position, end]}
            position = end
        raw = json.dumps(header, separators=(",", ":")).encode()
        raw += b" " * (-len(raw) % 8)  # aligns the tensors
        file.write(len(raw).to_bytes(8, "little") + raw)

    def write(self, key: str, array: Array) -> None:
        """Append the next tensor; it must be the one announced."""
        expected, (dtype, shape) = self._expected[self._next]
        if key != expected or array.dtype != dtype or array.shape != shape:
            raise AssertionError(f"{key} {array.dtype} {array.shape} instead of {expected} {dtype} {shape}")
        self._file.write(as_bytes(np.ascontiguousarray(array)))
        self._next += 1

    def close(self) -> None:
        """Check that every announced tensor was written."""
        if self._next != len(self._expected):
            raise AssertionError(f"{self._expected[self._next][0]} was announced and not written")


def as_bytes(array: Array) -> memoryview:
    """The memory of a contiguous array, to write from or to read into."""
    return array.reshape(-1).view(np.uint8).data
