"""The portable form of an adapter: one rank and one scale for all modules, which every reader of PEFT folders understands.

Other programs read `r` and `lora_alpha` of `adapter_config.json` and little else: some ignore `rank_pattern`,
`alpha_pattern` and `use_rslora` without a word, some refuse them, and some want an integer alpha. Here every module has the
largest rank that one has, the smaller ones padded with zeros, lora_B carries the scale, and `lora_alpha == r`.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import pad

from flexlora_client.errors import BadInput
from flexlora_client.training.contract import ADAPTER_FILE, CONFIG_FILE
from flexlora_client.training.models.slice_files import LoadedSlice, read_slice
from flexlora_shared.layout import key_A, key_B
from flexlora_shared.messages.runs import RunSpec


@dataclass(frozen=True)
class Portable:
    """What the form cost.

    rank: of every module.
    rounding: the largest relative error (Frobenius) of a lora_B with the scale in it; 0 where no number was rounded.
    """

    rank: int
    rounding: float


def make_portable(folder: Path, spec: RunSpec) -> Portable:
    """Rewrite the adapter in `folder`.

    lora_B is multiplied in float64 and rounded once, to the dtype it is stored in. A scale that is a power of two rounds
    nothing, but where float16 ends: it has no numbers above 65504, and few digits below 6e-5.

    Raises:
        BadInput: a number does not fit into the adapter's dtype.
        AdapterError: the adapter is none of this run.
    """
    adapter = read_slice(folder, spec)
    names = [module.name for module in spec.modules]
    rank = max(map(adapter.config.rank_of, names))
    tensors, rounding = dict(adapter.tensors), 0.0
    for name in names:
        A, B, error = _one_module(adapter, name, rank)
        tensors |= {key_A(name): A, key_B(name): B}
        rounding = max(rounding, error)
    save_file(tensors, folder / ADAPTER_FILE, metadata={"format": "pt"})
    fields = json.loads((folder / CONFIG_FILE).read_bytes())
    uniform = {"r": rank, "lora_alpha": rank, "rank_pattern": {}, "alpha_pattern": {}, "use_rslora": False}
    (folder / CONFIG_FILE).write_text(json.dumps(fields | uniform, indent=2))
    return Portable(rank, rounding)


def _one_module(adapter: LoadedSlice, name: str, rank: int) -> tuple[Tensor, Tensor, float]:
    """lora_A (rank, in_features), lora_B (out_features, rank) that carries the scale, and lora_B's relative error."""
    A, B = adapter.tensors[key_A(name)], adapter.tensors[key_B(name)]
    scale = adapter.config.scaling_of(name)
    exact = B.double() * scale
    folded = exact.to(B.dtype)
    if not torch.isfinite(folded).all():
        raise BadInput(
            f"lora_B of {name} times its scale {scale:g} does not fit into {_words(B.dtype)}; "
            "--exact keeps the scale apart, --merge writes a merged model"
        )
    missing, norm = rank - len(A), float(exact.norm())
    error = float((folded.double() - exact).norm()) / norm if norm else 0.0
    return pad(A, (0, 0, 0, missing)).contiguous(), pad(folded, (0, missing)).contiguous(), error


def _words(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
