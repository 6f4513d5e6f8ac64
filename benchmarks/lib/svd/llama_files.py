"""Writes a round of a Llama-shaped model to files: the previous global update, and all uploads.

Fast: every tensor is made of scaled stretches of one pool of random numbers, another for each participant and module. The
structure is that of `rounds`: a global update of decaying spectrum, a change all share, and one of each participant's own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from benchmarks.lib.svd.matrices import geometric
from benchmarks.lib.svd.synthetic_rounds import DECAY, DRIFT, NOISE
from flexlora_server.adapter_files.dtypes import DTYPES, slice_dtype
from flexlora_server.adapter_files.global_adapter_torch import GlobalAdapterWriter, as_array, served_dtype
from flexlora_server.adapter_files.round_uploads import InputUpdate, with_weights
from flexlora_server.adapter_files.safetensors_writer import TensorWriter
from flexlora_server.aggregation.factors import GlobalFactors
from flexlora_server.worker.aggregate_round import RoundWork
from flexlora_shared.layout import adapter_shapes, key_A, key_B
from flexlora_shared.messages.runs import ModelSpec, ModuleSpec, RunSpec
from flexlora_shared.messages.uploads import UploadCreate

POOL = 1 << 24  # numbers
KEYS_AND_VALUES = 1024  # features of the grouped keys, and of the values


@dataclass(frozen=True)
class Model:
    """How large a Llama 3 is."""

    layers: int
    hidden: int
    mlp: int

    def layer(self) -> dict[str, tuple[int, int]]:
        """Out x in features of a layer's linear modules."""
        hidden, mlp = self.hidden, self.mlp
        return {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (KEYS_AND_VALUES, hidden),
            "self_attn.v_proj": (KEYS_AND_VALUES, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (mlp, hidden),
            "mlp.up_proj": (mlp, hidden),
            "mlp.down_proj": (hidden, mlp),
        }


MODELS = {"8b": Model(32, 4096, 14336), "70b": Model(80, 8192, 28672)}


def spec_of(model: Model, ranks: Sequence[int], dtype: str, error_bound: float) -> RunSpec:
    """The run: every linear layer has an adapter."""
    modules = [
        ModuleSpec(name=f"model.layers.{layer}.{name}", out_features=d, in_features=k)
        for layer in range(model.layers)
        for name, (d, k) in model.layer().items()
    ]
    return RunSpec.model_validate(
        {
            "name": "llama",
            "model": ModelSpec(id="none"),
            "modules": modules,
            "ranks": sorted(set(ranks)),
            "rounds": 2,
            "upload_dtype": dtype,
            "error_bound": error_bound,
        }
    )


def write_round(spec: RunSpec, ranks: Sequence[int], folder: Path, threads: int) -> RoundWork:
    """All the files of a round in `folder`, and the work of aggregating them."""
    made = _Made(spec)
    previous = folder / "previous.safetensors"
    with previous.open("wb") as file:
        writer = GlobalAdapterWriter(file, spec)
        for module in spec.modules:
            writer.module(module.name, made.published(module))
        writer.close()
    uploads = [made.upload(participant, rank, folder) for participant, rank in enumerate(ranks)]
    return RoundWork(spec, with_weights(uploads), previous, threads=threads)


class _Made:
    """The synthetic tensors of a round."""

    def __init__(self, spec: RunSpec) -> None:
        self._spec, self._r_max, self._dtype = spec, spec.largest_rank, served_dtype(spec)
        self._pool = torch.randn(POOL, generator=torch.Generator().manual_seed(spec.seed))
        self._s = geometric(self._r_max, DECAY).float()

    def published(self, module: ModuleSpec) -> GlobalFactors:
        B, A = (self._stretch(f"{module.name} {side}", size, self._r_max) for side, size in _sides(module))
        return GlobalFactors(B=B * self._s, A=A.mT.contiguous())

    def upload(self, participant: int, rank: int, folder: Path) -> InputUpdate:
        path = folder / f"{participant}.safetensors"
        shapes = adapter_shapes(self._spec.modules, (), {module.name: rank for module in self._spec.modules})
        with path.open("wb") as file:
            writer = TensorWriter(
                file, {key: (DTYPES[slice_dtype(self._spec)], shape) for key, shape in shapes.items()}
            )
            for module in self._spec.modules:
                B, A = (
                    self._trained(f"{module.name} {side}", size, rank, participant) for side, size in _sides(module)
                )
                writer.write(key_A(module.name), as_array(A.mT.to(self._dtype)))
                writer.write(key_B(module.name), as_array((B * self._s[:rank]).to(self._dtype)))
            writer.close()
        size = path.stat().st_size
        told = UploadCreate(rank=rank, alpha=float(rank), examples=100 + participant, size=size, sha256="0" * 64)
        return InputUpdate(path, told, str(participant))

    def _trained(self, of: str, size: int, rank: int, participant: int) -> Tensor:
        served, change = self._stretch(of, size, self._r_max), self._stretch(f"{of} change", size, self._r_max)
        own = self._stretch(f"{of} {participant}", size, rank)
        return served[:, :rank] + DRIFT * change[:, :rank] + NOISE * own

    def _stretch(self, of: str, size: int, rank: int) -> Tensor:
        """(size, rank), columns of norm about 1; always the same for `of`."""
        at = Random(of).randrange(POOL - size * rank)
        return self._pool[at : at + size * rank].view(size, rank).div(math.sqrt(size))


def _sides(module: ModuleSpec) -> tuple[tuple[str, int], tuple[str, int]]:
    return ("B", module.out_features), ("A", module.in_features)
