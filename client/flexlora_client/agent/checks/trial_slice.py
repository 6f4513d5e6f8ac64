"""Writes a slice as a coordinator would serve it in round 0, to try model and training with before there is one."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from flexlora_client.agent.slice_cache import SliceRequest
from flexlora_client.files import make_folder
from flexlora_client.training.contract import ADAPTER_FILE, CONFIG_FILE
from flexlora_client.training.models.slice_files import read_config, tensor_shapes

PEFT_HEADS = ("classifier", "score")  # modules that PEFT saves whole


def write_trial_slice(request: SliceRequest, folder: Path) -> None:
    """Write a slice of the request's ranks into `folder`: lora_B is 0, everything else random."""
    spec = request.spec
    config = {
        "peft_type": "LORA",
        "task_type": spec.model.task_type,
        "r": request.rank,
        "lora_alpha": request.alpha,
        "rank_pattern": dict(request.rank_pattern),
        "alpha_pattern": request.alpha_pattern,
        "use_rslora": spec.scaling.use_rslora,
        "target_modules": [module.name for module in spec.modules],
        "modules_to_save": sorted({_saved_module(extra.name) for extra in spec.extra}) or None,
    }
    make_folder(folder)
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    shapes = tensor_shapes(read_config(folder, spec), spec)
    generator = torch.Generator().manual_seed(spec.seed)
    tensors = {
        name: torch.zeros(shape) if ".lora_B." in name else 0.02 * torch.randn(shape, generator=generator)
        for name, shape in shapes.items()
    }
    save_file(tensors, folder / ADAPTER_FILE)


def _saved_module(tensor: str) -> str:
    head = tensor.partition(".")[0]
    return head if head in PEFT_HEADS else tensor.rpartition(".")[0]
