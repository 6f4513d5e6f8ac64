"""A slice of a run as the coordinator would serve it, for measurements before anything is served."""

import json
from pathlib import Path

import torch

from flexlora_client.training.contract import CONFIG_FILE
from flexlora_client.training.models.fresh import fresh_adapter
from flexlora_client.training.models.slice_files import LoadedSlice, SliceConfig, write_slice
from flexlora_shared.layout import key_extra
from flexlora_shared.messages.runs import RunSpec


def trial_slice(spec: RunSpec, rank: int) -> LoadedSlice:
    """A slice of this rank: lora_A random, lora_B and extra tensors zero."""
    config = SliceConfig(
        r=rank,
        lora_alpha=spec.scaling.alpha_of(rank),
        use_rslora=spec.scaling.use_rslora,
        target_modules=tuple(module.name for module in spec.modules),
        modules_to_save=tuple(sorted({_saved_module(tensor.name) for tensor in spec.extra})) or None,
    )
    extra = {key_extra(tensor.name): torch.zeros(tensor.shape) for tensor in spec.extra}
    return fresh_adapter(LoadedSlice(config, extra), spec, 0, "")


def write_trial_slice(trial: LoadedSlice, spec: RunSpec, folder: Path) -> Path:
    """Write it as a folder that `read_slice` reads; the folder."""
    fields = {"peft_type": "LORA", "task_type": spec.model.task_type, "bias": "none"}
    folder.mkdir()
    (folder / CONFIG_FILE).write_text(json.dumps(fields | trial.config.model_dump(mode="json")))
    return write_slice(trial.tensors, folder, spec, folder).parent


def adapter_parameters(spec: RunSpec, rank: int) -> int:
    """Numbers that a slice of this rank has."""
    lora = sum(rank * (module.in_features + module.out_features) for module in spec.modules)
    return lora + sum(torch.Size(tensor.shape).numel() for tensor in spec.extra)


def _saved_module(name: str) -> str:
    """The module that PEFT keeps whole for this tensor: of a head named classifier or score all of it."""
    head = name.partition(".")[0]
    return head if head in ("classifier", "score") else name.rpartition(".")[0]
