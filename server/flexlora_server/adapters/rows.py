"""The stored global update (`stored` tells its format) as NumPy arrays: what the process that serves reads of it."""

from functools import cached_property
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - the library finds bfloat16 among NumPy's dtypes
from safetensors import safe_open

from flexlora_server.adapters.dtypes import Array


class StoredRows:
    """Its rows, copied from its memory-mapped file, which is opened once: every opening parses the whole header."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @cached_property
    def _file(self) -> Any:  # safetensors' annotations leave out what it returns
        return safe_open(self._path, framework="np")

    def Bt(self, module: str, rank: int) -> Array:
        """The first `rank` rows of a module's transposed B, (rank, out_features) float32."""
        found: Array = self._file.get_slice(f"{module}.Bt")[:rank]
        return found

    def A(self, module: str, rank: int) -> Array:
        """The first `rank` rows of a module's A, (rank, in_features), in the dtype they are stored in."""
        found: Array = self._file.get_slice(f"{module}.A")[:rank]
        return found

    def extra(self, name: str) -> Array:
        """An extra tensor, float32."""
        found: Array = self._file.get_tensor(f"extra:{name}")
        return found
