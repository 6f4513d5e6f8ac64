"""How the base model is loaded to save memory: its number format, quantized layers, off-load to main memory.

The adapter and the optimizer's state are float32 in every case; `torch.autocast` computes in the base model's format.
"""

import importlib.util
from collections.abc import Sequence
from typing import Any

import torch
from transformers import BitsAndBytesConfig as Quantization

from flexlora_client.errors import DeviceError
from flexlora_client.training.contract import Compute
from flexlora_client.training.models import devices

HALF_DTYPES = (torch.bfloat16, torch.float16)


def check_compute(compute: Compute, targets: Sequence[torch.device]) -> None:
    """Check that this machine can compute so on these devices. Raises: DeviceError."""
    if compute.offload and len(targets) > 1:
        raise DeviceError(
            "--offload spreads one base model over all visible GPUs, several devices hold one each; "
            "use --offload, or several devices with --quantization nf4."
        )
    for device in targets:
        _check_device(compute, device)


def _check_device(compute: Compute, device: torch.device) -> None:
    if compute.dtype == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise DeviceError(f"{device} does not compute in bfloat16; use --dtype float16 or float32.")
    if compute.quantization != "none" or compute.optimizer != "adamw":
        _require_bitsandbytes()
        if device.type == "mps":
            raise DeviceError("bitsandbytes has no kernels for mps; leave --quantization and --optimizer out.")
    if compute.optimizer == "paged-adamw-8bit" and device.type != "cuda":
        raise DeviceError(f"paged optimizers need a CUDA device, this is {device}; use --optimizer adamw-8bit.")
    if compute.offload and device.type != "cuda":
        raise DeviceError(f"--offload moves layers from a CUDA device to main memory; {device} has nothing to move.")
    if compute.offload and compute.quantization != "none":
        raise DeviceError("quantized layers cannot be moved to main memory; use --offload or --quantization.")


def loading_options(
    compute: Compute, device: torch.device, stored: torch.dtype | None, whole: Sequence[str]
) -> dict[str, Any]:
    """Keyword arguments for `from_pretrained`. `whole` are modules that are trained in full, which stay unquantized."""
    dtype = compute_dtype(compute, device, stored)
    options: dict[str, Any] = {"dtype": dtype}
    if compute.quantization != "none":
        options |= {
            "quantization_config": _quantization(compute, dtype, whole),
            "device_map": {"": device},
        }
    elif compute.offload:
        options["device_map"] = "auto"  # fills the CUDA devices, then main memory
    return options


def keep_packing(model: torch.nn.Module) -> None:
    """Keep 4-bit layers as they are when they are evaluated on a CPU.

    bitsandbytes repacks them there for its own kernel on the first call without gradients: it rounds the blocks' scales to
    bfloat16, refuses widths that are no multiple of a block, and the next round would train on what is left.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]  # PyTorch annotates tensors and modules


def compute_dtype(compute: Compute, device: torch.device, stored: torch.dtype | None) -> torch.dtype:
    """The format of what is not quantized; `stored` is the format of the model's files."""
    if compute.dtype == "auto":
        return devices.base_dtype(device, stored)
    dtype: torch.dtype = getattr(torch, compute.dtype)
    return dtype


def _quantization(compute: Compute, dtype: torch.dtype, whole: Sequence[str]) -> Any:
    skipped = sorted(whole) or None  # None: the output head and what is tied to it
    if compute.quantization == "int8":
        return Quantization(load_in_8bit=True, llm_int8_skip_modules=skipped)  # type: ignore[no-untyped-call]
    return Quantization(  # type: ignore[no-untyped-call]  # as QLoRA does (Dettmers et al. 2023)
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=skipped,
    )


def _require_bitsandbytes() -> None:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise DeviceError("8 and 4 bit need bitsandbytes; install it with: pip install 'flexlora[agent,quantization]'.")
