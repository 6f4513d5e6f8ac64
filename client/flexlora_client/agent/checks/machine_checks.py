"""Checks of this machine: room on its disk and in its memory."""

import json
import re
import shutil
from pathlib import Path

import psutil
import torch

from flexlora_client.agent.checks.findings import Check, Doubt
from flexlora_client.agent.checks.model_checks import loads_model
from flexlora_client.agent.checks.subject import Subject
from flexlora_client.credentials import check_writable
from flexlora_client.errors import BadInput, OutOfMemory
from flexlora_client.training.contract import Compute
from flexlora_client.training.fitting.memory import free_memory
from flexlora_client.training.models.precision import compute_dtype
from flexlora_shared.layout import size_bounds

SERVED_ON_DISK = 2  # slices: the last one served, and one on its way
PARTS_ON_DISK = 2  # where a part of it is trained: the slice in its parts, and put together again
TRAINED_ON_DISK = 4  # of what is trained: the update, and a checkpoint of parameters with two moments
TRAINED_BYTES = 8  # of a trained number: itself and its gradient, in float32
FROZEN_BYTES = 4  # of a number that is held beside it
MOMENT_BYTES = {"adamw": 8, "adamw-8bit": 2, "paged-adamw-8bit": 0}  # paged ones need not be on the device
QUANTIZED_BYTES = {"int8": 1.0, "nf4": 0.5}
BLOCK = re.compile(r"\.\d+\.")  # quantized layers stand in numbered blocks, embeddings and the output head do not
STORED = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}


def disk(subject: Subject) -> str:
    """Look for room for what a round writes. Raises: BadInput."""
    check_writable(subject.home)
    free = shutil.disk_usage(subject.home).free
    served, trained = (size_bounds(request.shapes)[1] for request in (subject.request, subject.trained))
    slices = SERVED_ON_DISK + (PARTS_ON_DISK if subject.holds_more else 0)
    needed = slices * served + TRAINED_ON_DISK * trained
    if free < needed:
        raise BadInput(
            f"{subject.home} has {_size(free)} free, a round needs {_size(needed)}; free space, or give another --home"
        )
    return f"{_size(free)} free, a round needs {_size(needed)}"


def memory(subject: Subject) -> str | Doubt:
    """Compare a rough need with what is free. Raises: OutOfMemory where the base model alone is larger than the memory."""
    if not loads_model(subject):
        return "not known of the training loop of --trainer"
    path, compute = Path(subject.local_trainer.model_path or subject.spec.model.id), subject.local_trainer.compute
    device = min(subject.devices, key=lambda each: _memory(each)[0])  # each holds the whole model
    base = _base_bytes(path, device, compute)
    if base is None:
        return "not known before the base model is here"
    held, trained = (sum(map(_elements, r.shapes.values())) for r in (subject.request, subject.trained))
    moments = 0 if subject.spec.training.optimizer == "sgd" else MOMENT_BYTES[compute.optimizer]
    needed = base + (TRAINED_BYTES + moments) * trained + FROZEN_BYTES * (held - trained)
    free, total = _memory(device)
    if compute.offload:  # layers that the device cannot hold lie in main memory
        free, total = (one + other for one, other in zip((free, total), _memory(torch.device("cpu")), strict=True))
    if base > total:
        raise OutOfMemory(
            f"the base model alone takes {_size(base)}, {device} has {_size(total)} in all; "
            "load it smaller with --quantization nf4 or --dtype bfloat16, or choose a machine with more memory."
        )
    sizes = f"at least {_size(needed)} are needed beside the activations, {_size(free)} are free"
    if needed > free:
        return Doubt(
            f"{sizes} on {device}; end what else uses it, declare a lower rank (--rank, --hold-rank), or use --quantization nf4"
        )
    return sizes


def _memory(device: torch.device) -> tuple[int, int]:
    """Bytes free and in all."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)
    return free_memory(device), psutil.virtual_memory().total


def _base_bytes(folder: Path, device: torch.device, compute: Compute) -> float | None:
    """Bytes of the base model in memory, by the headers of its files; None where there are none."""
    found = [_stored(path, device, compute) for path in folder.glob("*.safetensors")]
    return sum(found) or None


def _stored(path: Path, device: torch.device, compute: Compute) -> float:
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    except (OSError, ValueError, MemoryError):
        return 0  # loading says what is wrong with it
    tensors = ((name, entry["shape"], entry["dtype"]) for name, entry in header.items() if name != "__metadata__")
    return sum(_elements(shape) * _number_bytes(name, shape, dtype, device, compute) for name, shape, dtype in tensors)


def _number_bytes(name: str, shape: list[int], dtype: str, device: torch.device, compute: Compute) -> float:
    """What a number of this tensor takes once it is loaded."""
    if compute.quantization != "none" and len(shape) == 2 and BLOCK.search(name):
        return QUANTIZED_BYTES[compute.quantization]
    return compute_dtype(compute, device, STORED.get(dtype)).itemsize


def _elements(shape: list[int] | tuple[int, ...]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


MACHINE_CHECKS = (
    Check("disk", disk, needs=("rank",)),
    Check("memory", memory, needs=("rank", "data")),
)
