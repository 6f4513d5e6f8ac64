"""The linear layers of a model that may get an adapter, and what of the model gets none, with the reason."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from flexlora_client.errors import ModelError
from flexlora_shared.messages.runs import ModuleSpec
from flexlora_shared.ranks import matches, unmatched_keys

ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class Layers:
    """Linear layers, and a sentence for each kind of layer that was left out."""

    chosen: tuple[ModuleSpec, ...]
    notes: tuple[str, ...]

    def without(self, left_out: Iterable[ModuleSpec], reason: str) -> "Layers":
        """The layers but those, with a note of the reason where there are any."""
        names = {module.name for module in left_out}
        kept = tuple(module for module in self.chosen if module.name not in names)
        return Layers(kept, (*self.notes, f"left out {summary('layer', names)}: {reason}.")) if names else self


def linear_layers(
    network: PreTrainedModel,
    saved: Sequence[str],
    target: str | Sequence[str],
    exclude: Sequence[str],
    rank: int,
    *,
    reads_text: bool = True,
) -> Layers:
    """The layers that `target` names, in the model's order; `saved` are modules that are trained in full instead.

    Left out are layers that `exclude` names, those that the task never uses, those whose weights are used without the layer
    and those that cannot hold `rank`, the smallest of the run.

    Raises:
        ModelError: a target or an exclusion names no linear layer, or none is left.
    """
    found = _all_linear(network, saved)
    if not found:
        raise ModelError(f"a {type(network).__name__} has no linear layers to train.")
    targets = [target] if isinstance(target, str) else list(target)
    _check_names("target", found, [] if target == ALL_LINEAR else targets, allow_none=target == ALL_LINEAR)
    _check_names("exclusion", found, exclude, allow_none=True)
    layers = Layers(tuple(m for m in found if target == ALL_LINEAR or any(matches(m.name, t) for t in targets)), ())
    layers = Layers(tuple(m for m in layers.chosen if not any(matches(m.name, key) for key in exclude)), ())
    if reads_text and not getattr(network.config, "is_encoder_decoder", False):
        layers = layers.without(_outside_text(network, layers.chosen), "text does not pass through them")
    direct = [m for m in layers.chosen if _read_directly(network, m.name)]
    layers = layers.without(direct, "the mixer's kernel reads their weights past the adapter")
    small = [m for m in layers.chosen if min(m.out_features, m.in_features) < rank]
    layers = layers.without(small, f"they are smaller than rank {rank}")
    if not layers.chosen:
        raise ModelError(f"no linear layer is left to train: {' '.join(layers.notes) or 'all are excluded.'}")
    return Layers(layers.chosen, (*layers.notes, *_expert_notes(network)))


def summary(what: str, names: Iterable[str]) -> str:
    """Names with their numbers replaced and merged, as `6 layers (model.layers.*.mlp.up_proj)`."""
    listed = list(names)
    merged = sorted({".".join("*" if part.isdigit() else part for part in name.split(".")) for name in listed})
    shown = ", ".join(merged[:6]) + (f" and {len(merged) - 6} more" if merged[6:] else "")
    return f"{len(listed)} {what}{'s' if len(listed) > 1 else ''} ({shown})"


def _all_linear(network: PreTrainedModel, saved: Sequence[str]) -> list[ModuleSpec]:
    output: object = network.get_output_embeddings()  # type: ignore[no-untyped-call]
    layers = []
    for name, layer in network.named_modules():
        if layer is output or any(name == module or name.startswith(f"{module}.") for module in saved):
            continue
        if isinstance(layer, Conv1D):  # GPT-2 stores (in_features, out_features)
            layers.append(ModuleSpec(name=name, out_features=layer.weight.shape[1], in_features=layer.weight.shape[0]))
        elif isinstance(layer, torch.nn.Linear):
            layers.append(ModuleSpec(name=name, out_features=layer.out_features, in_features=layer.in_features))
    return layers


def _check_names(what: str, layers: Sequence[ModuleSpec], keys: Sequence[str], *, allow_none: bool) -> None:
    names = [layer.name for layer in layers]
    unknown = unmatched_keys(names, dict.fromkeys(keys))
    if unknown or not (keys or allow_none):
        endings = ", ".join(sorted({name.rpartition(".")[2] for name in names}))
        raise ModelError(
            f"the {what} {', '.join(unknown) or '(none)'} names no linear layer; this model has {endings}."
        )


def _outside_text(network: PreTrainedModel, layers: Sequence[ModuleSpec]) -> list[ModuleSpec]:
    """Of a model that also takes images or sounds: the layers outside its language model."""
    text = network.config.get_text_config()
    bodies = [
        name for name, part in network.named_modules() if isinstance(part, PreTrainedModel) and part.config is text
    ]
    if text is network.config or not bodies:
        return []
    return [layer for layer in layers if not any(layer.name.startswith(f"{body}.") for body in bodies)]


def _read_directly(network: PreTrainedModel, name: str) -> bool:
    """Whether this is a layer of a Mamba mixer whose weight fused kernels take, never calling the layer."""
    parent, _, own = name.rpartition(".")
    mixer = network.get_submodule(parent)
    return own in {"dt_proj", "out_proj"} and hasattr(mixer, "A_log") and hasattr(mixer, "D")


def _expert_notes(network: PreTrainedModel) -> list[str]:
    """Weights of three dimensions: PEFT's adapters of these are one matrix an expert, no product of one B and one A."""
    fused = [
        f"{name}.{own}".removeprefix(".")
        for name, module in network.named_modules()
        for own, parameter in module.named_parameters(recurse=False)
        if parameter.dim() == 3 and "bias" not in own and "expert" in f"{name}.{own}"
    ]
    if not fused:
        return []
    return [
        f"left out {summary('tensor', fused)}: one tensor holds all experts, which no adapter of one A and one B fits."
    ]
