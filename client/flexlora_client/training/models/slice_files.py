"""Reads a served slice (PEFT configuration and tensors) from disk and writes a trained one."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from flexlora_client.errors import AdapterError, DivergedError
from flexlora_client.training.contract import ADAPTER_FILE, CONFIG_FILE
from flexlora_shared.header import HeaderError, TensorError, read_header
from flexlora_shared.layout import adapter_shapes, key_extra, peft_task_type
from flexlora_shared.messages.base import Alpha, AlphaPattern, Message, Rank, RankPattern, TensorName, Tuple
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.ranks import by_pattern, lora_scaling, unmatched_keys

# Of adapter_config.json. Fields beyond these change what an adapter computes (DoRA, layer choices, ...): the agent
# builds its own PEFT configuration from those it knows and refuses a file that asks for more.
IGNORED_CONFIG_FIELDS = frozenset(
    [
        "auto_mapping",
        "base_model_name_or_path",
        "fan_in_fan_out",
        "inference_mode",
        "init_lora_weights",
        "lora_dropout",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
    ]
)


class SliceConfig(Message):
    """What of `adapter_config.json` decides on ranks and scaling; PEFT's field names and meaning."""

    r: Rank
    lora_alpha: Alpha
    rank_pattern: RankPattern = {}
    alpha_pattern: AlphaPattern = {}
    use_rslora: bool = False
    target_modules: Tuple[TensorName]
    modules_to_save: Tuple[TensorName] | None = None

    def rank_of(self, module: str) -> int:
        """The rank of one module."""
        return by_pattern(module, self.r, self.rank_pattern)

    def scaling_of(self, module: str) -> float:
        """The factor of one module's `B @ A`."""
        alpha = by_pattern(module, self.lora_alpha, self.alpha_pattern)
        return lora_scaling(self.rank_of(module), alpha, self.use_rslora)


@dataclass(frozen=True)
class LoadedSlice:
    """A slice in memory, checked: its configuration and its tensors (F32, F16 or BF16, on the CPU) by key."""

    config: SliceConfig
    tensors: Mapping[str, torch.Tensor]


def read_config(directory: Path, spec: RunSpec) -> SliceConfig:
    """The slice's `adapter_config.json`, checked against the run.

    Raises:
        AdapterError: it is missing or malformed, it is not LoRA of this run's task, modules and extra tensors, or it
            asks for something that an adapter of this protocol does not have.
    """
    path = directory / CONFIG_FILE
    fields = _json(path)
    for name, expected in (
        ("peft_type", "LORA"),
        ("task_type", peft_task_type(spec)),
        ("bias", "none"),
    ):
        if fields.pop(name, expected) != expected:
            raise AdapterError(f"{path}: {name} is not {expected!r}; fetch the slice that the coordinator serves.")
    known = {name: fields.pop(name) for name in SliceConfig.model_fields if name in fields}
    strange = sorted(name for name, value in fields.items() if value and name not in IGNORED_CONFIG_FIELDS)
    if strange:
        raise AdapterError(f"{path}: sets {', '.join(strange)}, which no slice of this protocol has; fetch it again.")
    try:
        config = SliceConfig.model_validate(known)
    except ValidationError as error:
        first = error.errors()[0]
        raise AdapterError(
            f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}; fetch the slice again."
        ) from None
    _check_names(path, config, spec)
    return config


def tensor_shapes(config: SliceConfig, spec: RunSpec) -> dict[str, tuple[int, ...]]:
    """Every tensor of the slice by key, with its shape. A served slice names capped modules in its pattern."""
    return adapter_shapes(
        spec.modules, spec.extra, {module.name: config.rank_of(module.name) for module in spec.modules}
    )


def read_slice(directory: Path, spec: RunSpec) -> LoadedSlice:
    """The slice in `directory`, every tensor checked before it is loaded.

    Raises:
        AdapterError: a file is missing or malformed, or a tensor is missing, unexpected, misshapen or not finite.
    """
    config = read_config(directory, spec)
    path = directory / ADAPTER_FILE
    try:
        with path.open("rb") as file:
            read_header(file, path.stat().st_size, tensor_shapes(config, spec))
    except OSError as error:
        raise AdapterError(f"{path} cannot be read ({error.strerror}); fetch the slice again.") from error
    except (HeaderError, TensorError) as error:
        raise AdapterError(f"{path} is not the slice of this run: {error}.") from error
    tensors = load_file(path)
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise AdapterError(f"{path}: tensor {name!r} holds numbers that are not finite; fetch the slice again.")
    return LoadedSlice(config, tensors)


def write_slice(tensors: Mapping[str, torch.Tensor], served: Path, spec: RunSpec, output: Path) -> Path:
    """Write trained tensors beside a copy of the served configuration, in the run's upload dtype; the file's path.

    The tensor file appears last and whole, by a rename: where it stands, training is complete.

    Raises:
        DivergedError: a number is not finite in that dtype.
        AdapterError: the directory cannot be written.
    """
    dtype: torch.dtype = getattr(torch, spec.upload_dtype)
    ready = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in tensors.items()}
    for name, tensor in ready.items():
        if not torch.isfinite(tensor).all():
            raise DivergedError(
                f"tensor {name!r} is not finite in {spec.upload_dtype}; lower the learning rate of the run."
            )
    try:
        return write_files(ready, (served / CONFIG_FILE).read_bytes(), output)
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{output} cannot be written ({error}); free space or give another directory.") from error


def write_files(tensors: dict[str, torch.Tensor], config: bytes, output: Path) -> Path:
    """Write an adapter's two files, each whole by a rename, the tensors last; their path. Raises: OSError, SafetensorError."""
    output.mkdir(parents=True, exist_ok=True)
    for name in (CONFIG_FILE, ADAPTER_FILE):
        part = output / f".{name}.{os.getpid()}.part"
        try:
            if name == CONFIG_FILE:
                part.write_bytes(config)
            else:
                save_file(tensors, part, metadata={"format": "pt"})
            part.replace(output / name)
        finally:
            part.unlink(missing_ok=True)
    return output / ADAPTER_FILE


def _json(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_bytes())
    except OSError as error:
        raise AdapterError(f"{path} cannot be read ({error.strerror}); fetch the slice again.") from error
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{path} is not JSON ({error}); fetch the slice again.") from error
    if not isinstance(fields, dict):
        raise AdapterError(f"{path} is not a JSON object; fetch the slice again.")
    return fields


def _check_names(path: Path, config: SliceConfig, spec: RunSpec) -> None:
    modules = {module.name for module in spec.modules}
    if set(config.target_modules) != modules:
        odd = sorted(modules.symmetric_difference(config.target_modules))[0]
        raise AdapterError(f"{path}: target_modules are not the run's modules ({odd} differs); fetch the slice again.")
    for pattern in (config.rank_pattern, config.alpha_pattern):
        for key in unmatched_keys(modules, pattern):
            raise AdapterError(f"{path}: the pattern's key {key} names no module of the run; fetch the slice again.")
    saved = config.modules_to_save or ()
    for tensor in spec.extra:
        if not any(key_extra(tensor.name).startswith(key_extra(f"{module}.")) for module in saved):
            raise AdapterError(f"{path}: modules_to_save does not cover the run's extra tensor {tensor.name}.")
