"""Reads the stored global update as NumPy arrays, for the process that serves; `global_adapter_torch` describes the format."""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from flexlora_server.adapter_files.dtypes import DTYPES, Array


class NumpyGlobalAdapter:
    """A stored global update as views of its memory-mapped file, which is opened once: opening parses the whole header.

    Does not use the safetensors library: its NumPy tensors are copies, made while holding the interpreter lock.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    @cached_property
    def _file(self) -> tuple[Array, dict[str, Any]]:
        """The tensors' bytes, and the header as our own writer wrote it."""
        mapped = np.memmap(self._path, np.uint8, "r").view(np.ndarray)
        start = 8 + int.from_bytes(mapped[:8].tobytes(), "little")
        return mapped[start:], json.loads(mapped[8:start].tobytes())

    def _tensor(self, key: str) -> Array:
        body, header = self._file
        begin, end = header[key]["data_offsets"]
        return body[begin:end].view(DTYPES[header[key]["dtype"]]).reshape(header[key]["shape"])

    def Bt(self, module: str, rank: int) -> Array:
        """The first `rank` rows of a module's transposed B, (rank, out_features) float32."""
        return self._tensor(f"{module}.Bt")[:rank]

    def A(self, module: str, rank: int) -> Array:
        """The first `rank` rows of a module's A, (rank, in_features), in the dtype they are stored in."""
        return self._tensor(f"{module}.A")[:rank]

    def extra(self, name: str) -> Array:
        """An extra tensor, float32."""
        return self._tensor(f"extra:{name}")
