"""Configures the LoRA layers of a wrapped model: which factors train, and a frozen slice below the trained adapter.

The adapter that is trained and uploaded is always PEFT's "default", so that extra tensors (modules that PEFT saves whole,
of which only one adapter can be active) are trained as ever.
"""

import copy

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer

from flexlora_client.training.models.slice_files import LoadedSlice
from flexlora_shared.layout import key_A, key_B

TRAINED_ADAPTER = "default"  # PEFT's name of the adapter that is trained
FROZEN_ADAPTER = "served"  # PEFT's name of the frozen slice below it, where there is one


def lora_layers(model: PeftModel) -> list[tuple[str, LoraLayer]]:
    """Every LoRA layer by its name in the base model."""
    modules = model.get_base_model().named_modules()
    return [(name, module) for name, module in modules if isinstance(module, LoraLayer)]


def is_lora_A_key(key: str) -> bool:
    """Whether this is the key of a lora_A in an adapter's file."""
    return key.endswith(".lora_A.weight")


def is_lora_B_key(key: str) -> bool:
    """Whether this is the key of a lora_B in an adapter's file."""
    return key.endswith(".lora_B.weight")


def is_frozen_key(key: str) -> bool:
    """Whether this state-dict key is of the frozen slice: PEFT strips only the name of the requested adapter."""
    return key.endswith((f".lora_A.{FROZEN_ADAPTER}.weight", f".lora_B.{FROZEN_ADAPTER}.weight"))


def reset_layers(model: PeftModel) -> None:
    """Remove the frozen slice and train both factors, as PEFT sets it up."""
    for _, layer in lora_layers(model):
        if FROZEN_ADAPTER in layer.lora_A:
            layer.delete_adapter(FROZEN_ADAPTER)
        layer.set_adapter(TRAINED_ADAPTER)


def give_memory(model: PeftModel) -> None:
    """Give the adapters of off-loaded layers memory where the layers compute: PEFT makes them without, as their weights are."""
    for _, layer in lora_layers(model):
        hook = getattr(layer.get_base_layer(), "_hf_hook", None)  # accelerate's; it moves the weights in and out
        for factors in (layer.lora_A, layer.lora_B):
            weight = factors[TRAINED_ADAPTER].weight
            if hook is not None and isinstance(weight, torch.Tensor) and weight.is_meta:
                factors[TRAINED_ADAPTER].to_empty(device=hook.execution_device)


def freeze_lora_A(model: PeftModel) -> None:
    """Train lora_B alone."""
    for _, layer in lora_layers(model):
        layer.lora_A[TRAINED_ADAPTER].weight.requires_grad_(False)


def freeze_lora_B(model: PeftModel) -> None:
    """Train lora_A alone."""
    for _, layer in lora_layers(model):
        layer.lora_B[TRAINED_ADAPTER].weight.requires_grad_(False)


def add_frozen_slice(model: PeftModel, served: LoadedSlice) -> None:
    """Freeze a slice under the adapter: a layer computes `base(x) + s' B' A' x + s B A x`, the slice without dropout.

    The slice is part of what the fresh adapter starts from, as if it were merged into the base model, but the base
    model's weights stay as they are, so nothing is rounded and nothing has to be taken out again.
    """
    config = model.peft_config[TRAINED_ADAPTER]
    assert isinstance(config, LoraConfig)
    frozen_config = copy.copy(config)
    frozen_config.lora_dropout, frozen_config.init_lora_weights = 0.0, False
    for name, layer in lora_layers(model):
        with torch.random.fork_rng(devices=[]):  # PEFT draws numbers that are replaced below
            layer.update_layer(FROZEN_ADAPTER, served.config.rank_of(name), lora_alpha=1, config=frozen_config)
        layer.scaling[FROZEN_ADAPTER] = served.config.scaling_of(name)
        for factors, key in ((layer.lora_A, key_A(name)), (layer.lora_B, key_B(name))):
            trained = factors[TRAINED_ADAPTER].weight
            assert isinstance(trained, torch.Tensor)  # of a linear layer
            # where the trained adapter is: PEFT puts the slice to an off-loaded layer's weights, on the meta device
            values = served.tensors[key].to(trained.device, torch.float32)
            factors[FROZEN_ADAPTER].weight = torch.nn.Parameter(values, requires_grad=False)
        layer.set_adapter([FROZEN_ADAPTER, TRAINED_ADAPTER])
        layer.set_requires_grad(FROZEN_ADAPTER, requires_grad=False)
