"""What to do when memory ends within a step: smaller micro-batches, then gradient checkpointing."""

from dataclasses import replace
from typing import Any

from peft import PeftModel

from flexlora_client.training.contract import Compute
from flexlora_client.training.models.load_model import LoadedModel


def can_checkpoint(loaded: LoadedModel) -> bool:
    """Whether the base model can recompute its activations instead of keeping them."""
    base: Any = loaded.model.get_base_model()
    return bool(base.supports_gradient_checkpointing)


def set_checkpointing(model: PeftModel, on: bool) -> None:
    """Switch gradient checkpointing; the losses stay the same, a step takes about a third longer.

    Non-reentrant, so that gradients reach the adapter although no input needs any.
    """
    base: Any = model.get_base_model()
    if on:
        base.activation_checkpointing_enable({"use_reentrant": False})
        base.config.use_cache = False  # of keys and values, while training; generating asks for it by itself
    elif base.is_activation_checkpointing:
        base.activation_checkpointing_disable()
        base.disable_input_require_grads()


def more_sparing(compute: Compute, loaded: LoadedModel, batch_size: int) -> Compute | None:
    """The next setting that takes less memory and learns the same; None where there is no further one."""
    size = min(compute.micro_batch or batch_size, batch_size)
    if size > 1:
        return replace(compute, micro_batch=size // 2)
    if not compute.gradient_checkpointing and can_checkpoint(loaded):
        return replace(compute, gradient_checkpointing=True)
    return None
