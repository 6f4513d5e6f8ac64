"""What a run can train of a model: its linear layers and its classification head, from the model's configuration alone.

The model is built on PyTorch's meta device, which has shapes and no memory: no weights are downloaded or read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from flexlora_client.errors import ModelError
from flexlora_shared.messages.runs import ExtraTensor, ModelSpec, ModuleSpec, TaskType
from flexlora_shared.ranks import matches, unmatched_keys

ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class Description:
    """The parts of a run's definition that the model decides."""

    model: ModelSpec
    modules: tuple[ModuleSpec, ...]
    extra: tuple[ExtraTensor, ...]


def describe(
    model: str,
    task_type: TaskType = "CAUSAL_LM",
    target: str | Sequence[str] = ALL_LINEAR,
    labels: Sequence[str] = (),
    revision: str | None = None,
) -> Description:
    """The modules and extra tensors of a model (a hub id or a local directory), for the task.

    `target` is "all-linear", which takes every linear layer but the output head, or names or name endings of the
    layers to take (PEFT's `target_modules`, literally). A classifier's head goes to the extra tensors, to be averaged.

    Raises:
        ModelError: the configuration does not load, has no model for the task, or a target names no linear layer;
            a classifier without labels.
    """
    if task_type == "SEQ_CLS" and not labels:
        raise ModelError("a classifier needs its labels; name them in the order of the logits.")
    network = _on_meta(model, task_type, len(labels), revision)
    head = _head(network) if task_type == "SEQ_CLS" else {}
    layers = _linear_layers(network, set(head))
    chosen = layers if target == ALL_LINEAR else _targeted(layers, [target] if isinstance(target, str) else target)
    return Description(
        ModelSpec(id=model, revision=revision, task_type=task_type, labels=tuple(labels)),
        tuple(chosen),
        tuple(ExtraTensor(name=name, shape=tuple(p.shape), init=_init(name, p)) for name, p in head.items()),
    )


def skeleton(description: Description) -> dict[str, Any]:
    """The description as JSON values: the keys `model`, `modules` and `extra` of a run's definition."""
    return {
        "model": description.model.model_dump(mode="json", exclude_defaults=True),
        "modules": [module.model_dump(mode="json") for module in description.modules],
        "extra": [tensor.model_dump(mode="json") for tensor in description.extra],
    }


def _on_meta(model: str, task_type: TaskType, labels: int, revision: str | None) -> PreTrainedModel:
    auto: Any = AutoModelForCausalLM
    try:
        config = AutoConfig.from_pretrained(model, revision=revision or "main")
        if task_type == "SEQ_CLS":
            auto, config.num_labels = AutoModelForSequenceClassification, labels
        with torch.device("meta"):
            network: PreTrainedModel = auto.from_config(config)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).strip().splitlines()
        raise ModelError(
            f"the model {model!r} has no usable configuration for {task_type} ({reason[0] if reason else error!r}); "
            "give the path of a local directory with its config.json, or make its model hub reachable."
        ) from error
    return network


def _head(network: PreTrainedModel) -> dict[str, torch.nn.Parameter]:
    """Every parameter outside the pretrained body."""
    body = network.base_model_prefix + "."
    return {name: parameter for name, parameter in network.named_parameters() if not name.startswith(body)}


def _linear_layers(network: PreTrainedModel, head: set[str]) -> list[ModuleSpec]:
    output: object = network.get_output_embeddings()  # type: ignore[no-untyped-call]
    layers = []
    for name, layer in network.named_modules():
        if layer is output or f"{name}.weight" in head:
            continue
        if isinstance(layer, Conv1D):  # GPT-2 stores (in_features, out_features)
            layers.append(ModuleSpec(name=name, out_features=layer.weight.shape[1], in_features=layer.weight.shape[0]))
        elif isinstance(layer, torch.nn.Linear):
            layers.append(ModuleSpec(name=name, out_features=layer.out_features, in_features=layer.in_features))
    if not layers:
        raise ModelError(f"a {type(network).__name__} has no linear layers to train.")
    return layers


def _targeted(layers: Sequence[ModuleSpec], targets: Sequence[str]) -> list[ModuleSpec]:
    names = [layer.name for layer in layers]
    unknown = unmatched_keys(names, dict.fromkeys(targets))
    if unknown or not targets:
        endings = ", ".join(sorted({name.rpartition(".")[2] for name in names}))
        raise ModelError(
            f"the target {', '.join(unknown) or '(none)'} names no linear layer; this model has {endings}."
        )
    return [layer for layer in layers if any(matches(layer.name, target) for target in targets)]


def _init(name: str, parameter: torch.nn.Parameter) -> Any:
    if name.endswith("bias"):
        return "zeros"
    return "normal" if parameter.dim() > 1 else "ones"  # a vector of weights scales: a layer norm
