"""Cuts the slice of a rank and pattern from a stored global update, as PEFT's `adapter_model.safetensors`.

lora_A is the first bytes of the stored A, unchanged. lora_B is computed from the stored rows in chunks that fit a core's cache:
each is transposed, divided by the scaling and rounded. One tensor is in memory at a time. The result equals that of
`aggregation.factors.slice_factors` bit for bit; strategies measure changes against it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from flexlora_server.adapter_files.dtypes import DTYPES, Array, slice_dtype, to_dtype
from flexlora_server.adapter_files.global_adapter_numpy import NumpyGlobalAdapter
from flexlora_server.adapter_files.safetensors_writer import TensorWriter
from flexlora_server.errors import AggregationError
from flexlora_shared.layout import adapter_shapes, key_A, key_B, key_extra
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.ranks import lora_scaling, module_ranks

CHUNK_ELEMENTS = 1 << 16  # of lora_B that are divided at once: 512 KiB in float64


def served_scaling(spec: RunSpec, rank: int) -> float:
    """The scaling of a slice of this rank, by the run's rule."""
    return lora_scaling(rank, spec.scaling.alpha_of(rank), spec.scaling.use_rslora)


def write_slice(stored: Path, spec: RunSpec, rank: int, pattern: Mapping[str, int], file: BinaryIO) -> None:
    """Write the slice to `file`, module by module.

    Raises:
        AggregationError: lora_B does not fit into the run's dtype.
    """
    dtype, adapter = DTYPES[slice_dtype(spec)], NumpyGlobalAdapter(stored)
    ranks = module_ranks(spec.modules, rank, pattern)
    shapes = adapter_shapes(spec.modules, spec.extra, ranks)
    writer = TensorWriter(file, {key: (dtype, shape) for key, shape in shapes.items()})
    for module in spec.modules:
        own = ranks[module.name]
        writer.write(key_A(module.name), to_dtype(adapter.A(module.name, own), dtype))
        writer.write(key_B(module.name), sliced_B(adapter.Bt(module.name, own), served_scaling(spec, own), dtype))
    for extra in spec.extra:
        writer.write(key_extra(extra.name), to_dtype(adapter.extra(extra.name), dtype))
    writer.close()


def sliced_B(Bt: Array, scaling: float, dtype: np.dtype[np.generic]) -> Array:
    """lora_B (d, r) in `dtype` of the stored rows Bt (r, d)."""
    rank, d = Bt.shape
    B = np.empty((d, rank), dtype)
    step = max(1, CHUNK_ELEMENTS // rank)
    for start in range(0, d, step):
        rows = slice(start, start + step)
        B[rows] = to_dtype(Bt[:, rows].T.astype(np.float64) / scaling, dtype)
        if not np.isfinite(B[rows]).all():
            raise AggregationError(f"lora_B at rank {rank} does not fit into {dtype}: serve float32, or a larger alpha")
    return B
