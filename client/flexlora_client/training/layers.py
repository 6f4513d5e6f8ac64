"""The LoRA layers of a placed slice: which of their factors train, and what lies frozen under them.

The adapter that is trained and uploaded is always PEFT's "default", so that extra tensors (modules that PEFT saves whole,
of which only one adapter can be active) are trained as ever.
"""

import copy

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer

from flexlora_client.training.slice_files import Slice
from flexlora_shared.layout import key_A, key_B

ADAPTER = "default"  # PEFT's name of the adapter that is trained
UNDER = "served"  # of the one frozen under it, where there is one


def lora_layers(model: PeftModel) -> list[tuple[str, LoraLayer]]:
    """Every LoRA layer by its name in the base model."""
    modules = model.get_base_model().named_modules()
    return [(name, module) for name, module in modules if isinstance(module, LoraLayer)]


def is_A(key: str) -> bool:
    """Whether this is the key of a lora_A in an adapter's file."""
    return key.endswith(".lora_A.weight")


def is_under(key: str) -> bool:
    """Whether PEFT gives this key to a factor of the frozen slice: it strips the name of the adapter asked for only."""
    return key.endswith((f".lora_A.{UNDER}.weight", f".lora_B.{UNDER}.weight"))


def plain(model: PeftModel) -> None:
    """Nothing under the adapter, and both its factors trained: as PEFT makes it."""
    for _, layer in lora_layers(model):
        if UNDER in layer.lora_A:
            layer.delete_adapter(UNDER)
        layer.set_adapter(ADAPTER)


def freeze_A(model: PeftModel) -> None:
    """Train lora_B alone."""
    for _, layer in lora_layers(model):
        layer.lora_A[ADAPTER].weight.requires_grad_(False)


def put_under(model: PeftModel, served: Slice) -> None:
    """Freeze a slice under the adapter: a layer computes `base(x) + s' B' A' x + s B A x`, the slice without dropout.

    The slice is part of what the fresh adapter starts from, as if it were merged into the base model, but the base
    model's weights stay as they are, so nothing is rounded and nothing has to be taken out again.
    """
    config = model.peft_config[ADAPTER]
    assert isinstance(config, LoraConfig)
    frozen = copy.copy(config)
    frozen.lora_dropout, frozen.init_lora_weights = 0.0, False
    for name, layer in lora_layers(model):
        with torch.random.fork_rng(devices=[]):  # PEFT draws numbers that are replaced below
            layer.update_layer(UNDER, served.config.rank_of(name), lora_alpha=1, config=frozen)
        layer.scaling[UNDER] = served.config.scaling_of(name)
        for factors, key in ((layer.lora_A, key_A(name)), (layer.lora_B, key_B(name))):
            weight = factors[UNDER].weight
            assert isinstance(weight, torch.Tensor)  # of a linear layer
            weight.data = served.tensors[key].to(weight.device, torch.float32)
        layer.set_adapter([UNDER, ADAPTER])
        layer.set_requires_grad(UNDER, requires_grad=False)
