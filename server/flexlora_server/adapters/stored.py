"""The global update as stored: one safetensors file at the run's largest rank.

Each module has `NAME.Bt`, the transposed B (r_max, out_features), and `NAME.A` (r_max, in_features), both float32 and ordered by
singular value, so that the slice of rank r is the first r rows of each. Extra tensors follow as `extra:NAME`, float32.
"""

from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import safe_open
from torch import Tensor

from flexlora_server.adapters.writer import TensorWriter
from flexlora_server.aggregation.factors import GlobalFactors
from flexlora_shared.messages.runs import RunSpec


class StoredWriter:
    """Writes a stored global update, module by module in the spec's order, then the extra tensors."""

    def __init__(self, file: BinaryIO, spec: RunSpec) -> None:
        tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
        for module in spec.modules:
            tensors[f"{module.name}.Bt"] = (torch.float32, (spec.largest_rank, module.out_features))
            tensors[f"{module.name}.A"] = (torch.float32, (spec.largest_rank, module.in_features))
        for extra in spec.extra:
            tensors[f"extra:{extra.name}"] = (torch.float32, extra.shape)
        self._writer = TensorWriter(file, tensors)

    def module(self, name: str, factors: GlobalFactors) -> None:
        """The next module's factors."""
        self._writer.write(f"{name}.Bt", factors.B.mT.contiguous())
        self._writer.write(f"{name}.A", factors.A)

    def extra(self, name: str, tensor: Tensor) -> None:
        """The next extra tensor."""
        self._writer.write(f"extra:{name}", tensor)

    def close(self) -> None:
        """Check that nothing is missing."""
        self._writer.close()


class StoredAdapter:
    """A stored global update, read from its memory-mapped file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def factors(self, module: str, rank: int | None = None) -> GlobalFactors:
        """A module's factors, B (out_features, rank) and A (rank, in_features); all ranks where none is given."""
        with safe_open(self._path, framework="pt") as file:
            rows = slice(None, rank)
            return GlobalFactors(
                B=file.get_slice(f"{module}.Bt")[rows].mT.contiguous(), A=file.get_slice(f"{module}.A")[rows]
            )

    def extra(self, name: str) -> Tensor:
        """An extra tensor, float32."""
        with safe_open(self._path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(f"extra:{name}")
            return tensor
