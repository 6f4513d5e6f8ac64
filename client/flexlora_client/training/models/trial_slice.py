"""A slice of a run as the coordinator would serve it, for measurements before anything is served."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from flexlora_client.training.contract import CONFIG_FILE
from flexlora_client.training.models.fresh import fresh_adapter
from flexlora_client.training.models.slice_files import LoadedSlice, SliceConfig, write_slice
from flexlora_shared.layout import adapter_shapes, key_extra, peft_task_type, saved_modules
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.ranks import capped_pattern, longest_first, module_ranks


def trial_slice(spec: RunSpec, rank: int, rank_pattern: Mapping[str, int] | None = None) -> LoadedSlice:
    """A slice of this rank and pattern: lora_A random, lora_B and extra tensors zero."""
    pattern = longest_first(capped_pattern(spec.modules, rank, rank_pattern or {}))
    alpha = spec.scaling.alpha_of(rank)
    alphas = {key: spec.scaling.alpha_of(own) for key, own in pattern.items()}
    config = SliceConfig(
        r=rank,
        lora_alpha=alpha,
        rank_pattern=pattern,
        alpha_pattern=alphas if set(alphas.values()) - {alpha} else {},
        use_rslora=spec.scaling.use_rslora,
        target_modules=tuple(module.name for module in spec.modules),
        modules_to_save=tuple(saved_modules(spec.extra)) or None,
    )
    extra = {key_extra(tensor.name): torch.zeros(tensor.shape) for tensor in spec.extra}
    return fresh_adapter(LoadedSlice(config, extra), spec, 0, "", ())


def write_trial_slice(trial: LoadedSlice, spec: RunSpec, folder: Path) -> Path:
    """Write it as a folder that `read_slice` reads; the folder."""
    fields = {"peft_type": "LORA", "task_type": peft_task_type(spec), "bias": "none"}
    folder.mkdir()
    (folder / CONFIG_FILE).write_text(json.dumps(fields | trial.config.model_dump(mode="json")))
    return write_slice(trial.tensors, folder, spec, folder).parent


def adapter_parameters(spec: RunSpec, rank: int) -> int:
    """Numbers that a slice of this rank has."""
    shapes = adapter_shapes(spec.modules, spec.extra, module_ranks(spec.modules, rank, {}))
    return sum(torch.Size(shape).numel() for shape in shapes.values())
