"""Places a trial adapter on a model without memory, as an agent will place its slice, and leaves out what PEFT cannot adapt."""

import warnings
from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel

from flexlora_client.errors import AdapterError, ModelError
from flexlora_client.training.models.placing import REFUSED_BY_PEFT, place_slice
from flexlora_client.training.models.slice_files import LoadedSlice, SliceConfig, tensor_shapes
from flexlora_client.training.models.trainable_layers import Layers, summary
from flexlora_shared.layout import saved_modules
from flexlora_shared.messages.runs import ExtraTensor, ModelSpec, ModuleSpec, RunSpec
from flexlora_shared.ranks import capped_pattern, longest_first


def placeable(
    layers: Layers,
    model: ModelSpec,
    extra: Sequence[ExtraTensor],
    build: Callable[[], PreTrainedModel],
    rank: int,
    *,
    named: bool,
) -> Layers:
    """The layers that PEFT gives adapters of the protocol's names and shapes; `build` makes the model on the meta device.

    `named`: whether the layers were named one by one; then none is left out.

    Raises:
        ModelError: PEFT adapts none of them, or not all where they were named.
    """
    if _fault(layers.chosen, model, extra, build(), rank) is None:
        return layers
    endings: dict[str, list[ModuleSpec]] = {}
    for module in layers.chosen:
        endings.setdefault(module.name.rpartition(".")[2], []).append(module)
    faults = {ending: _fault(group, model, extra, build(), rank) for ending, group in endings.items()}
    refused = [module for ending, group in endings.items() if faults[ending] is not None for module in group]
    first = next((fault for fault in faults.values() if fault is not None), "")
    if refused and named:
        shown = summary("layer", (module.name for module in refused))
        raise ModelError(f"PEFT cannot adapt {shown}: {first}; name others with --target.")
    layers = layers.without(refused, f"PEFT cannot adapt them ({first})")
    fault = _fault(layers.chosen, model, extra, build(), rank) if layers.chosen else " ".join(layers.notes)
    if fault is not None:
        raise ModelError(f"PEFT cannot adapt this model: {fault.rstrip('.')}; name some layers with --target.")
    return layers


def _fault(
    modules: Sequence[ModuleSpec], model: ModelSpec, extra: Sequence[ExtraTensor], network: PreTrainedModel, rank: int
) -> str | None:
    """Why an adapter of these modules cannot be placed, without a full stop; None where it can."""
    spec = RunSpec(name="trial", model=model, modules=tuple(modules), extra=tuple(extra), ranks=(rank,), rounds=1)
    config = SliceConfig(
        r=rank,
        lora_alpha=float(rank),
        rank_pattern=longest_first(capped_pattern(spec.modules, rank, {})),
        target_modules=tuple(module.name for module in modules),
        modules_to_save=tuple(saved_modules(extra)) or None,
    )
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what PEFT warns of shows below, or does not matter here
        tensors = {name: torch.empty(shape) for name, shape in tensor_shapes(config, spec).items()}
        try:
            place_slice(LoadedSlice(config, tensors), network, spec, None)
        except AdapterError as error:
            return str(error).rstrip(".").removesuffix("; use the run's model").removeprefix(REFUSED_BY_PEFT)
    return None
