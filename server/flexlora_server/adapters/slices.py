"""Cuts the slice of a rank and pattern from a stored global update, as PEFT's `adapter_model.safetensors`.

lora_A is the first bytes of the stored A, copied from the mapped file as they are. lora_B is made from the stored rows in pieces
that fit a core's cache: each is turned, divided by the scaling and rounded while it is there. One module is in memory at a time.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from flexlora_server.adapters.stored import StoredAdapter, served_dtype
from flexlora_server.adapters.writer import TensorWriter
from flexlora_server.aggregation.factors import GlobalFactors, slice_factors
from flexlora_shared.layout import adapter_shapes, key_A, key_B, key_extra
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.ranks import lora_scaling, module_ranks

PIECE = 1 << 16  # numbers of lora_B that are divided at once: 512 KiB in float64


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
        Bt, A = adapter.rows(module.name, own)
        writer.write(key_A(module.name), A.to(dtype))  # itself, where that is how it is stored
        writer.write(key_B(module.name), _lora_B(Bt, A, served_scaling(spec, own), dtype))
    for extra in spec.extra:
        writer.write(key_extra(extra.name), adapter.extra(extra.name).to(dtype))
    writer.close()


def _lora_B(Bt: Tensor, A: Tensor, scaling: float, dtype: torch.dtype) -> Tensor:
    """lora_B (d, r) in `dtype` of the stored rows Bt (r, d) and A: what `slice_factors` makes of them, piece by piece."""
    rank, d = Bt.shape
    B = torch.empty(d, rank, dtype=dtype)
    step = max(1, PIECE // rank)
    for start in range(0, d, step):
        rows = slice(start, start + step)
        piece = GlobalFactors(B=Bt[:, rows].mT, A=A[:, :0])  # no columns of A: it is written already
        B[rows] = slice_factors(piece, rank, scaling, dtype)[1]
    return B
