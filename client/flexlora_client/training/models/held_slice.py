"""A participant that holds more than it trains: the served slice as two adapters, and one again when it is trained.

The first directions of the slice, at the ranks that are trained, and the rest of it, which is frozen beside them: both keep the
slice's scaling, so their sum is the slice, number for number, and put together again they are. Each is a folder that PEFT loads.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from flexlora_client.errors import AdapterError
from flexlora_client.training.contract import ADAPTER_FILE, CONFIG_FILE
from flexlora_client.training.models.slice_files import LoadedSlice, SliceConfig, read_slice, write_files
from flexlora_shared.layout import key_A, key_B
from flexlora_shared.messages.runs import RunSpec, Scaling
from flexlora_shared.ranks import completed, longest_first, module_ranks, unmatched_keys

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class _Part:
    """Some directions of a slice: how many, and the rank of the slice, whose scaling they keep."""

    rank: int
    held: int

    def alpha(self, scaling: Scaling) -> float:
        """The `lora_alpha` that gives as many directions the slice's scaling."""
        share = self.rank / self.held
        return scaling.alpha_of(self.held) * (math.sqrt(share) if scaling.use_rslora else share)


def split_slice(
    served: Path, spec: RunSpec, rank: int, pattern: Mapping[str, int], hold_rank: int, target: Path
) -> tuple[Path, Path]:
    """Write the slice of `hold_rank` in folder `served` as two: what is trained, at `rank` and `pattern`, and the frozen rest.

    Tensors beside LoRA are trained. The rest names only the modules that are held at a larger rank than they are trained at;
    there must be one.

    Raises:
        AdapterError: the slice cannot be read, or the folders not be written.
    """
    whole = read_slice(served, spec)
    trained = module_ranks(spec.modules, rank, pattern)
    parts = {name: _Part(own, whole.config.rank_of(name)) for name, own in trained.items()}
    keyed = {key: _Part(own, max(own, hold_rank)) for key, own in pattern.items()}
    first = _config(spec, parts, _Part(rank, hold_rank), keyed)
    beyond = {name: _Part(part.held - part.rank, part.held) for name, part in parts.items() if part.held > part.rank}
    keyed = {key: _Part(part.held - part.rank, part.held) for key, part in keyed.items() if part.held > part.rank}
    keyed = {key: part for key, part in keyed.items() if not unmatched_keys(beyond, {key: part})}
    usual = _Part(hold_rank - rank, hold_rank) if hold_rank > rank else next(iter(beyond.values()))
    rest = _config(spec, beyond, usual, keyed)
    tensors, frozen = dict(whole.tensors), dict[str, torch.Tensor]()
    for name, own in trained.items():
        A, B = whole.tensors[key_A(name)], whole.tensors[key_B(name)]
        tensors |= {key_A(name): A[:own], key_B(name): B[:, :own]}
        if name in beyond:
            frozen |= {key_A(name): A[own:], key_B(name): B[:, own:]}
    first = first.model_copy(update={"modules_to_save": whole.config.modules_to_save})
    fields = json.loads((served / CONFIG_FILE).read_bytes())
    folders = target / "trained", target / "frozen"
    for folder, named, config in zip(folders, (tensors, frozen), (first, rest), strict=True):
        _write(named, json.dumps(fields | config.model_dump(mode="json")).encode(), folder)
    return folders


def join_slice(trained: Path, frozen: Path, served: Path, target: Path) -> Path:
    """Write the slice that `served` becomes with the trained directions in it; the folder `target`.

    Raises:
        AdapterError: it cannot be written.
    """
    tensors, rest = load_file(trained / ADAPTER_FILE), load_file(frozen / ADAPTER_FILE)
    config = (served / CONFIG_FILE).read_bytes()
    for key, tensor in rest.items():
        tensors[key] = torch.cat([tensors[key], tensor], dim=0 if key.endswith(".lora_A.weight") else 1)
    return _write(tensors, config, target)


def read_frozen(directory: Path, spec: RunSpec) -> LoadedSlice:
    """The rest of a slice that `split_slice` wrote. Raises: AdapterError, as `read_slice` does."""
    try:
        named = set(json.loads((directory / CONFIG_FILE).read_bytes())["target_modules"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdapterError(f"{directory / CONFIG_FILE} is no PEFT configuration ({error}).") from error
    modules = tuple(module for module in spec.modules if module.name in named)
    return read_slice(directory, spec.model_copy(update={"modules": modules, "extra": ()}))


def _config(spec: RunSpec, parts: Mapping[str, _Part], usual: _Part, keyed: Mapping[str, _Part]) -> SliceConfig:
    """The configuration of these parts by module; `keyed`: those of a rank pattern, `usual`: of modules that it does not name."""
    pattern = longest_first(completed(keyed, parts, usual))
    alphas, alpha = {key: part.alpha(spec.scaling) for key, part in pattern.items()}, usual.alpha(spec.scaling)
    return SliceConfig(
        r=usual.rank,
        lora_alpha=alpha,
        rank_pattern={key: part.rank for key, part in pattern.items()},
        alpha_pattern=alphas if set(alphas.values()) - {alpha} else {},
        use_rslora=spec.scaling.use_rslora,
        target_modules=tuple(parts),
    )


def _write(tensors: Tensors, config: bytes, output: Path) -> Path:
    try:
        return write_files({key: tensor.contiguous() for key, tensor in tensors.items()}, config, output).parent
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{output} cannot be written ({error}); free space or give another directory.") from error
