"""Cuts the slice of a rank and pattern from a stored global update, as PEFT's `adapter_model.safetensors`."""

from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import torch

from flexlora_server.adapters.stored import StoredAdapter
from flexlora_server.adapters.writer import TensorWriter
from flexlora_server.aggregation.factors import slice_factors
from flexlora_shared.layout import adapter_shapes, key_A, key_B, key_extra
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.ranks import lora_scaling, module_ranks


def served_dtype(spec: RunSpec) -> torch.dtype:
    """The dtype of a run's slices."""
    return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[spec.upload_dtype]


def served_scaling(spec: RunSpec, rank: int) -> float:
    """The scaling of a slice of this rank, by the run's rule."""
    return lora_scaling(rank, spec.scaling.alpha_of(rank), spec.scaling.use_rslora)


def cut(stored: Path, spec: RunSpec, rank: int, pattern: Mapping[str, int], file: BinaryIO) -> None:
    """Write the slice to `file`, module by module."""
    dtype, adapter = served_dtype(spec), StoredAdapter(stored)
    ranks = module_ranks((module.name for module in spec.modules), rank, pattern)
    shapes = adapter_shapes(spec.modules, spec.extra, ranks)
    writer = TensorWriter(file, {key: (dtype, shape) for key, shape in shapes.items()})
    for module in spec.modules:
        own = ranks[module.name]
        A, B = slice_factors(adapter.factors(module.name, own), own, served_scaling(spec, own), dtype)
        writer.write(key_A(module.name), A)
        writer.write(key_B(module.name), B)
    for extra in spec.extra:
        writer.write(key_extra(extra.name), adapter.extra(extra.name).to(dtype))
    writer.close()
