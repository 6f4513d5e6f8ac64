"""Writes and reads the stored global update: one safetensors file at the run's largest rank, or a module's own where
that is smaller.

Each module has `NAME.Bt`, the transposed B (r_max, out_features) in float32, and `NAME.A` (r_max, in_features) in the dtype
that the run serves, whose values it holds exactly (float32 where agents train fresh adapters). Strategies that decompose order
both by singular value. The slice of rank r is the first r rows of each, and its lora_A the first bytes of `NAME.A`. Extra
tensors follow as `extra:NAME`, float32. Files written before A was kept in the served dtype have it in float32: the same values.
"""

from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from flexlora_server.adapter_files.dtypes import DTYPES, Array, slice_dtype
from flexlora_server.adapter_files.safetensors_writer import TensorWriter
from flexlora_server.aggregation.factors import GlobalFactors
from flexlora_server.aggregation.strategies.registry import strategy
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.ranks import capped

TORCH_DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}  # by their names in safetensors files


def as_array(tensor: Tensor) -> Array:
    """A tensor as an array, which shares its memory where that is contiguous and on the CPU."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        array: Array = tensor.view(torch.uint16).numpy().view(DTYPES["BF16"])
        return array
    return tensor.numpy()


def served_dtype(spec: RunSpec) -> torch.dtype:
    """The dtype of a run's slices in PyTorch."""
    return TORCH_DTYPES[slice_dtype(spec)]


def _dtype_of_A(spec: RunSpec) -> str:
    """The name of the dtype of the stored A. With fresh adapters it is not rounded: no upload is compared with the served A."""
    return "F32" if strategy(spec.strategy).agents_train == "fresh" else slice_dtype(spec)


class GlobalAdapterWriter:
    """Writes a stored global update, module by module in the spec's order, then the extra tensors."""

    def __init__(self, file: BinaryIO, spec: RunSpec) -> None:
        float32, dtype_of_A = DTYPES["F32"], DTYPES[_dtype_of_A(spec)]
        self._dtype = TORCH_DTYPES[_dtype_of_A(spec)]
        tensors: dict[str, tuple[np.dtype[np.generic], tuple[int, ...]]] = {}
        for module in spec.modules:
            rank = capped(module, spec.largest_rank)
            tensors[f"{module.name}.Bt"] = (float32, (rank, module.out_features))
            tensors[f"{module.name}.A"] = (dtype_of_A, (rank, module.in_features))
        for extra in spec.extra:
            tensors[f"extra:{extra.name}"] = (float32, extra.shape)
        self._writer = TensorWriter(file, tensors)

    def module(self, name: str, factors: GlobalFactors) -> None:
        """Write the next module's factors; the values of A must be exact in the stored dtype, as strategies return them."""
        self._writer.write(f"{name}.Bt", as_array(factors.B.mT))
        self._writer.write(f"{name}.A", as_array(factors.A.to(self._dtype)))

    def extra(self, name: str, tensor: Tensor) -> None:
        """Write the next extra tensor."""
        self._writer.write(f"extra:{name}", as_array(tensor))

    def close(self) -> None:
        """Check that every tensor was written."""
        self._writer.close()


class TorchGlobalAdapter:
    """A stored global update as tensors of its memory-mapped file, which is opened once: opening parses the whole header."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @cached_property
    def _file(self) -> Any:  # safetensors' annotations leave out what it returns
        return safe_open(self._path, framework="pt")

    def factors(self, module: str, rank: int | None = None) -> GlobalFactors:
        """A module's factors, B (out_features, rank) and A (rank, in_features), float32; all ranks where none is given."""
        rows = slice(None, rank)
        Bt, A = self._file.get_slice(f"{module}.Bt")[rows], self._file.get_slice(f"{module}.A")[rows]
        return GlobalFactors(B=Bt.mT.contiguous(), A=A.float())

    def extra(self, name: str) -> Tensor:
        """An extra tensor, float32."""
        tensor: Tensor = self._file.get_tensor(f"extra:{name}")
        return tensor
