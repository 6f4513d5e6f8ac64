"""Puts a slice into a base model with PEFT, and takes the trained tensors out.

The result is that of `PeftModel.from_pretrained(base, directory, is_trainable=True)`, with three checks that PEFT
lacks or only warns of: every tensor of the file is in the model, no other tensor is trained, and every
module's rank and scaling are those the protocol's rules give.
"""

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from flexlora_client.errors import AdapterError
from flexlora_client.training.models.layers import (
    TRAINED_ADAPTER,
    add_frozen_slice,
    freeze_lora_A,
    freeze_lora_B,
    give_memory,
    is_frozen_key,
    is_lora_A_key,
    is_lora_B_key,
    lora_layers,
    reset_layers,
)
from flexlora_client.training.models.slice_files import LoadedSlice, SliceConfig
from flexlora_shared.layout import peft_task_type
from flexlora_shared.messages.runs import RunSpec

REFUSED_BY_PEFT = "PEFT cannot put an adapter on this base model: "


@dataclass(frozen=True)
class WrappedModel:
    """A base model wrapped for slices of one configuration."""

    model: PeftModel
    config: SliceConfig
    dropout: float


def place_slice(
    adapter: LoadedSlice,
    base: PreTrainedModel,
    spec: RunSpec,
    previous: WrappedModel | None,
    base_slice: LoadedSlice | None = None,
    trains_A: bool = True,
    trains_B: bool = True,
) -> WrappedModel:
    """The base model with the slice in it, its trainable tensors in float32.

    `previous` is what the same base model was wrapped as last: kept where the configuration is the same, else taken off.
    `base_slice` is another slice of the run, or the rest of this one: it acts too, frozen. Without `trains_A`, lora_A is
    frozen; without `trains_B`, lora_B.

    Raises:
        AdapterError: the base model lacks a module or a tensor of the slice, or has it in another shape.
    """
    dropout = spec.training.lora_dropout
    if previous is None or (previous.config, previous.dropout) != (adapter.config, dropout):
        if previous is not None:
            previous.model.unload()
        _check_base(base, spec)
        previous = WrappedModel(_wrap(adapter.config, base, spec), adapter.config, dropout)
        give_memory(previous.model)
    reset_layers(previous.model)
    for parameter in previous.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    try:
        result: Any = set_peft_model_state_dict(previous.model, dict(adapter.tensors), TRAINED_ADAPTER)
    except (KeyError, RuntimeError) as error:
        raise AdapterError(
            f"PEFT cannot put the slice into the base model ({str(error)[:200]}); the run's extra tensors must be those "
            "of the modules that the slice's modules_to_save names, and of classifier and score, which PEFT saves whole."
        ) from error
    if result.unexpected_keys:
        raise AdapterError(
            f"the base model has no place for the slice's {result.unexpected_keys[0]}; use the run's model."
        )
    if base_slice is not None:
        add_frozen_slice(previous.model, base_slice)
    if not trains_A:
        freeze_lora_A(previous.model)
    if not trains_B:
        freeze_lora_B(previous.model)
    _check_placed(previous, adapter, trains_A, trains_B)
    return previous


def trained_tensors(model: PeftModel) -> dict[str, torch.Tensor]:
    """The adapter's tensors by their keys in `adapter_model.safetensors`, extra tensors included."""
    state = get_peft_model_state_dict(model, adapter_name=TRAINED_ADAPTER, save_embedding_layers=False)
    return {key: tensor for key, tensor in state.items() if not is_frozen_key(key)}


def _wrap(config: SliceConfig, base: PreTrainedModel, spec: RunSpec) -> PeftModel:
    targets = [base.get_submodule(name) for name in config.target_modules]
    options = LoraConfig(
        task_type=peft_task_type(spec),
        r=config.r,
        lora_alpha=config.lora_alpha,  # type: ignore[arg-type]  # annotated int; PEFT divides, so a float is as good
        rank_pattern=dict(config.rank_pattern),
        alpha_pattern=dict(config.alpha_pattern),
        use_rslora=config.use_rslora,
        target_modules=list(config.target_modules),
        modules_to_save=list(config.modules_to_save) if config.modules_to_save else None,
        lora_dropout=spec.training.lora_dropout,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in targets),
    )
    with warnings.catch_warnings():
        # PEFT reads the attribute's former name; a participant cannot change that
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        try:
            model = get_peft_model(base, options, TRAINED_ADAPTER)
        except (ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
            reason = (str(error).strip() or repr(error)).splitlines()[0].rstrip(".")
            raise AdapterError(f"{REFUSED_BY_PEFT}{reason}.") from error
    assert isinstance(model, PeftModel)  # a mixed model only where asked for
    return model


def _check_base(base: PreTrainedModel, spec: RunSpec) -> None:
    modules, parameters = dict(base.named_modules()), dict(base.named_parameters())
    for module in spec.modules:
        layer = modules.get(module.name)
        if not isinstance(layer, torch.nn.Linear | Conv1D):
            raise AdapterError(f"the base model has no linear layer {module.name}; use the model the run names.")
        # a quantized layer's weight is packed, and Conv1D's is (in_features, out_features)
        shape = (
            tuple(layer.weight.shape[::-1]) if isinstance(layer, Conv1D) else (layer.out_features, layer.in_features)
        )
        if shape != (module.out_features, module.in_features):
            expected = [module.out_features, module.in_features]
            raise AdapterError(
                f"the base model's {module.name} is {list(shape)}, the run's {expected}; use the run's model."
            )
    for tensor in spec.extra:
        if tensor.name not in parameters:
            raise AdapterError(f"the base model has no tensor {tensor.name}; use the model the run names.")
        shape = tuple(parameters[tensor.name].shape)
        if shape != tensor.shape:
            raise AdapterError(f"the base model's {tensor.name} is {list(shape)}, the run's {list(tensor.shape)}.")


def _check_placed(placed: WrappedModel, adapter: LoadedSlice, trains_A: bool, trains_B: bool) -> None:
    state = trained_tensors(placed.model)
    odd = sorted(state.keys() ^ adapter.tensors.keys())
    if odd:
        raise AdapterError(
            f"the base model and the slice do not hold the same tensors ({odd[0]}); use the run's model."
        )
    for name, tensor in adapter.tensors.items():
        if state[name].shape != tensor.shape or not (
            tensor.is_meta or torch.equal(state[name].cpu(), tensor.float())  # a trial has no values
        ):
            raise AdapterError(
                f"PEFT did not take over tensor {name!r}; use the versions this agent was released with."
            )
    trainable = sum(parameter.numel() for parameter in placed.model.parameters() if parameter.requires_grad)
    expected = sum(
        tensor.numel()
        for name, tensor in state.items()
        if (trains_A or not is_lora_A_key(name)) and (trains_B or not is_lora_B_key(name))
    )
    if trainable != expected:
        raise AdapterError("PEFT trains other tensors than the run's; use the versions this agent was released with.")
    for name, layer in lora_layers(placed.model):
        if not math.isclose(layer.scaling[TRAINED_ADAPTER], adapter.config.scaling_of(name), rel_tol=1e-9):
            raise AdapterError(
                f"PEFT scales {name} by {layer.scaling[TRAINED_ADAPTER]}, the protocol by {adapter.config.scaling_of(name)}; "
                "its pattern's keys are ambiguous, the run's operator must change them."
            )
