"""What a run can train of a model: its linear layers and its classification head.

The model is built on PyTorch's meta device, which has shapes and no memory. Of weights that are on this machine only the
names are read, and a few bytes for the fingerprint; none are downloaded.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import logging

from flexlora_client.errors import ModelError, NotAgreed
from flexlora_client.training.models.checkpoint import DAMAGED, commit_of, has_weights
from flexlora_client.training.models.fingerprint import fingerprint
from flexlora_client.training.models.preprocessing import load_tokenizer
from flexlora_client.training.models.task_classes import AUTO_CLASSES, class_options, load_config
from flexlora_client.training.models.trainable_layers import ALL_LINEAR, linear_layers
from flexlora_client.training.models.trial import placeable
from flexlora_shared.layout import saved_modules
from flexlora_shared.messages.runs import (
    ExtraTensor,
    ModelSpec,
    ModuleSpec,
    ProblemType,
    PromptFormat,
    RunSpec,
    TaskType,
)
from flexlora_shared.run_checks import LABELLED

MAX_NEW_TENSORS = 16  # outside the head that a checkpoint may lack; more is another model's checkpoint
LOADING_ERRORS = (OSError, ValueError, KeyError, ImportError, RuntimeError, AttributeError, TypeError, *DAMAGED)
NO_WEIGHTS = (
    "no safetensors of {} lie on this machine, so what they lack beside the head (a pooler, for example) is unknown, and agents "
    "refuse a run without it; describe the model again once its weights are here."
)


@dataclass(frozen=True)
class Description:
    """The parts of a run's definition that the model decides, and a sentence for each thing that they leave out."""

    model: ModelSpec
    modules: tuple[ModuleSpec, ...]
    extra: tuple[ExtraTensor, ...]
    prompt_format: PromptFormat = "as-is"
    notes: tuple[str, ...] = ()


def describe(
    model: str,
    task_type: TaskType = "CAUSAL_LM",
    target: str | Sequence[str] = ALL_LINEAR,
    labels: Sequence[str] = (),
    revision: str | None = None,
    *,
    problem_type: ProblemType = "single-label",
    exclude: Sequence[str] = (),
    smallest_rank: int = 1,
) -> Description:
    """The modules and extra tensors of a model (a hub id or a local directory), for the task.

    `target` is "all-linear", which takes every linear layer but the output head, or names or name endings of the
    layers to take (PEFT's `target_modules`, literally). A classifier's head goes to the extra tensors, to be averaged, and
    so does what the checkpoint lacks. A trial adapter is placed, as an agent will place its slice.

    Raises:
        ModelError: the configuration does not load, has no model for the task, or a target names no linear layer;
            a classifier without labels.
    """
    if task_type in LABELLED and not labels:
        raise ModelError("a classifier needs its labels; name them in the order of the logits.")
    spec = ModelSpec(id=model, revision=revision, task_type=task_type, labels=tuple(labels), problem_type=problem_type)
    config = _config(spec)
    spec = spec.model_copy(update={"revision": commit_of(model, revision) or revision})
    build, missing = _builder(spec, config)
    network = build()
    trained = _head(network) if labels else {}
    trained |= _missing(network, spec, (missing or set()).difference(trained))
    extra = tuple(ExtraTensor(name=name, shape=tuple(p.shape), init=_init(name, p)) for name, p in trained.items())
    reads_text = task_type != "IMAGE_CLASSIFICATION"
    layers = linear_layers(network, saved_modules(extra), target, exclude, smallest_rank, reads_text=reads_text)
    layers = placeable(layers, spec, extra, build, smallest_rank, named=target != ALL_LINEAR)
    identified, prompt_format, notes = _identity(spec)
    if missing is None and labels:
        notes = [NO_WEIGHTS.format(spec.id), *notes]
    return Description(identified, layers.chosen, extra, prompt_format, (*layers.notes, *notes))


def check_of_model(run: RunSpec, path: str | None, allowed: Collection[str]) -> None:
    """Compare what the run trains with the base model, of which shapes and names alone are read.

    path: of the base model here, None: where the run says. allowed: tensors that may be trained in full beside a classifier's
    head and what the checkpoint lacks.

    Raises:
        ModelError: a module or a tensor is none of the model's, or has another shape.
        NotAgreed: a tensor is trained in full that is not allowed.
    """
    spec = run.model.model_copy(update={"id": path, "revision": None}) if path else run.model
    build, missing = _builder(spec, _config(spec))
    network = build()
    shapes = {name: parameter.numel() for name, parameter in network.named_parameters(remove_duplicate=False)}
    asked = {f"{each.name}.weight": each.out_features * each.in_features for each in run.modules}
    asked |= {each.name: prod(each.shape) for each in run.extra}
    if other := [name for name, count in asked.items() if shapes.get(name) != count]:
        raise ModelError(
            f"{other[0]} of the run is none of the base model's ({spec.id!r}), or of another size; use the run's own base model."
        )
    own = {*(_head(network) if spec.labels else ()), *(missing or ()), *allowed}
    if beyond := [each.name for each in run.extra if each.name not in own]:
        raise NotAgreed(
            f"the run trains {', '.join(beyond[:3])} in full, not only a classifier's head: what changes in such a tensor can "
            f"tell much of your data, in embeddings which words they hold; --allow-extra {beyond[0]} agrees to it, "
            "--keep-local head keeps it to yourself"
        )


def skeleton(description: Description) -> dict[str, Any]:
    """The description as JSON values: the keys `model`, `modules` and `extra` of a run's definition."""
    return {
        "model": description.model.model_dump(mode="json", exclude_defaults=True),
        "modules": [module.model_dump(mode="json") for module in description.modules],
        "extra": [tensor.model_dump(mode="json") for tensor in description.extra],
    }


def _config(spec: ModelSpec) -> PretrainedConfig:
    try:
        return load_config(spec.id, spec.revision, spec)
    except LOADING_ERRORS as error:
        raise _unusable(spec, error) from error


def _builder(spec: ModelSpec, config: PretrainedConfig) -> tuple[Callable[[], PreTrainedModel], set[str] | None]:
    """A function that makes the model on the meta device, and the names of the weights that its checkpoint lacks, if known."""
    build = partial(_from_config, spec, config)
    if not has_weights(spec.id, spec.revision):
        return build, None
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # of what takes no time here
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # of weights that are new
    try:
        _, report = AUTO_CLASSES[spec.task_type].from_pretrained(
            spec.id,
            config=config,
            revision=spec.revision or "main",
            device_map="meta",
            output_loading_info=True,
            **class_options(spec),
        )
    except LOADING_ERRORS as error:
        raise _unusable(spec, error) from error
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
    return build, set(report["missing_keys"])


def _from_config(spec: ModelSpec, config: PretrainedConfig) -> PreTrainedModel:
    try:
        with torch.device("meta"):
            network: PreTrainedModel = AUTO_CLASSES[spec.task_type].from_config(config, trust_remote_code=False)
    except LOADING_ERRORS as error:
        raise _unusable(spec, error) from error
    return network


def _unusable(spec: ModelSpec, error: Exception) -> ModelError:
    reason = (str(error).strip() or repr(error)).splitlines()[0]
    return ModelError(
        f"the model {spec.id!r} has no usable configuration or weights for {spec.task_type} ({reason}); "
        "give the path of a local directory with its config.json, or make its model hub reachable."
    )


def _head(network: PreTrainedModel) -> dict[str, torch.nn.Parameter]:
    """Every parameter outside the pretrained body."""
    bodies = [network.base_model_prefix]
    if not hasattr(network, bodies[0]):  # CLIP's image classifier
        bodies = [name for name, child in network.named_children() if isinstance(child, PreTrainedModel)]
    inside = tuple(f"{body}." for body in bodies)
    return {name: parameter for name, parameter in network.named_parameters() if not name.startswith(inside)}


def _missing(network: PreTrainedModel, spec: ModelSpec, names: set[str]) -> dict[str, torch.nn.Parameter]:
    """Parameters of a classifier that its checkpoint lacks beside the head (a pooler): they start alike for everybody."""
    lacking = {name: parameter for name, parameter in network.named_parameters() if name in names}
    if lacking and (not spec.labels or len(lacking) > MAX_NEW_TENSORS):
        shown = ", ".join(sorted(lacking)[:5]) + (" and more" if lacking.keys() - sorted(lacking)[:5] else "")
        raise ModelError(f"{spec.id} holds no weights for {shown}; use a model that has them.")
    return lacking


def _identity(spec: ModelSpec) -> tuple[ModelSpec, PromptFormat, list[str]]:
    """The model with its fingerprint, and the prompt format that fits it; with what could not be found out."""
    notes: list[str] = []
    prompt_format: PromptFormat = "as-is"
    try:
        if spec.task_type == "CAUSAL_LM" and load_tokenizer(spec.id, spec.revision).chat_template:
            prompt_format = "chat-template"
    except ModelError as error:
        notes.append(f"prompts are joined as they are: {error}")
    try:
        own = fingerprint(spec.id, spec.revision, spec.task_type)
        spec = spec.model_copy(update={"fingerprint": own})
    except ModelError as error:
        notes.append(f"the run will not check that participants have the same base model: {error}")
    return spec, prompt_format, notes


def _init(name: str, parameter: torch.nn.Parameter) -> Any:
    if name.endswith("bias"):
        return "zeros"
    return "normal" if parameter.dim() > 1 else "ones"  # a vector of weights scales: a layer norm
