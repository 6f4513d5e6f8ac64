"""Copies of training's tensors and random states, on the CPU; files that hold them, whole or not there."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from flexlora_client.files import sync_folder


def copied(value: Any) -> Any:
    """The value with every tensor in its dictionaries and lists copied to the CPU."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [copied(item) for item in value]
    return value


def put_back(tensors: Mapping[str, torch.Tensor], parameters: Mapping[str, torch.Tensor]) -> None:
    """Give the parameters the values of these tensors. Raises: KeyError, RuntimeError where they are others."""
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def random_state(devices: Sequence[torch.device]) -> dict[str, torch.Tensor]:
    """The states of the global generators that training draws from on these devices."""
    return {"cpu": torch.get_rng_state()} | {
        f"cuda{place or ''}": torch.cuda.get_rng_state(device)
        for place, device in enumerate(devices)
        if device.type == "cuda"
    }


def set_random_state(state: Mapping[str, torch.Tensor], devices: Sequence[torch.device]) -> None:
    """Go on drawing where `random_state` was taken."""
    torch.set_rng_state(state["cpu"])
    for place, device in enumerate(devices):
        if device.type == "cuda":
            torch.cuda.set_rng_state(state[f"cuda{place or ''}"], device)


def save_whole(content: Mapping[str, Any], path: Path) -> None:
    """Write tensors and plain values, atomically and synced to disk.

    Raises:
        OSError, RuntimeError: they cannot be written; RuntimeError is PyTorch's for a full disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    sync_folder(path.parent)


def load(path: Path) -> dict[str, Any] | None:
    """What `save_whole` wrote; None where there is no such file or it is damaged. Nothing in it is executed."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # PyTorch raises whatever the damage provokes
        return None
    return found if isinstance(found, dict) else None
