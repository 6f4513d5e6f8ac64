"""Choosing the device to train on, the number format of the base model there, and what tells that its memory is full."""

import ctypes
import gc
from contextlib import suppress

import torch

from flexlora_client.errors import DeviceError

# PyTorch has no error of its own for main memory: its allocator's words, those of oneDNN and of the system
OUT_OF_MEMORY_WORDS = ("can't allocate memory", "not enough memory", "out of memory", "Cannot allocate memory")


def resolve_device(name: str) -> torch.device:
    """The device called `name`; "auto" takes CUDA, else Apple's MPS, else the CPU. Raises: DeviceError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"{name!r} is no device; write auto, cpu, cuda, cuda:1 or mps.") from error
    if not _present(device):
        raise DeviceError(
            f"there is no device {name!r} here; write auto or cpu, or install its driver and torch build."
        )
    return device


def resolve_devices(names: str) -> tuple[torch.device, ...]:
    """The devices called `names`: one as of `resolve_device`, several with commas between, or "cuda:all". Raises: DeviceError."""
    if names == "cuda:all":
        resolve_device("cuda")
        return tuple(torch.device("cuda", index) for index in range(torch.cuda.device_count()))
    return tuple(resolve_device(name.strip()) for name in names.split(","))


def base_dtype(device: torch.device, stored: torch.dtype | None) -> torch.dtype:
    """The base model's dtype: float32, but bfloat16 for a model stored in 16 bits on a GPU that computes in it.

    The adapter is always trained in float32.
    """
    half = stored in (torch.float16, torch.bfloat16)
    return torch.bfloat16 if half and device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: on a GPU, or in main memory under a limit of the process (`ulimit`)."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError | OSError) and any(words in text for words in OUT_OF_MEMORY_WORDS)


def trim_heap() -> None:
    """Give freed main memory back to the system: glibc keeps holes of freed tensors, which count against a limit."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def release_memory(device: torch.device) -> None:
    """Give freed memory back to the device, after an allocation failed."""
    gc.collect()
    trim_heap()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def _present(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()
    return device.type == "cpu" or (device.type == "mps" and torch.backends.mps.is_available())
