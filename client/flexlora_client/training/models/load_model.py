"""Loads the base model once and puts each round's slice into it.

`Models` holds at most one base model: asking for another one drops the first before the second is loaded, so that the
peak is one model. It is not for several threads at a time.
"""

from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from transformers import BaseImageProcessor, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from flexlora_client.errors import ModelError, OutOfMemory
from flexlora_client.training.contract import DEFAULT_COMPUTE, Compute
from flexlora_client.training.models import devices
from flexlora_client.training.models.checkpoint import DAMAGED
from flexlora_client.training.models.placing import WrappedModel, place_slice
from flexlora_client.training.models.precision import HALF_DTYPES, check_compute, keep_packing, loading_options
from flexlora_client.training.models.preprocessing import load_image_processor, load_tokenizer, not_loaded
from flexlora_client.training.models.slice_files import LoadedSlice
from flexlora_client.training.models.task_classes import AUTO_CLASSES, class_options, load_config
from flexlora_shared.messages.runs import ModelSpec, ProblemType, RunSpec, TaskType

NO_LIMIT_TOKENS = 2**31  # for a model that names no limit
LOADING_ERRORS = (OSError, ValueError, KeyError, RuntimeError, ImportError, *DAMAGED)
Preprocessor = PreTrainedTokenizerBase | BaseImageProcessor


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to train or evaluate, with its tokenizer or image processor and its limits.

    What it predicts: `task_type`, and for SEQ_CLS `problem_type`.
    """

    model: PeftModel
    preprocessor: Preprocessor
    device: torch.device
    max_length: int  # tokens an example may have: the run's bound, or the model's own where that is less
    positions: int  # tokens the model itself takes
    task_type: TaskType
    dtype: torch.dtype  # of the base model
    problem_type: ProblemType = "single-label"
    compute: Compute = DEFAULT_COMPUTE  # how to compute with it

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of a model that reads text."""
        assert isinstance(self.preprocessor, PreTrainedTokenizerBase)  # by Models
        return self.preprocessor

    @property
    def processor(self) -> BaseImageProcessor:
        """The image processor of a model that classifies images."""
        assert isinstance(self.preprocessor, BaseImageProcessor)  # by Models
        return self.preprocessor

    def precision(self) -> torch.autocast:
        """The autocast context: needed where the base model is in 16 bits and the adapter in float32."""
        half = self.dtype in HALF_DTYPES
        return torch.autocast(self.device.type, self.dtype if half else torch.bfloat16, enabled=half)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The tokens that end an answer: the tokenizer's, and those the model's own generation settings name."""
        own = getattr(self.model.generation_config, "eos_token_id", None)
        named = own if isinstance(own, list) else [own]
        return tuple(sorted({token for token in (*named, self.tokenizer.eos_token_id) if token is not None}))

    @property
    def pad_id(self) -> int:
        """The token that fills batches up; always masked."""
        token = self.tokenizer.pad_token_id
        assert isinstance(token, int)  # by _preprocessor
        return token


@dataclass(frozen=True)
class _Key:
    """What identifies a loaded base model."""

    path: str
    revision: str | None
    model: ModelSpec
    extra: tuple[str, ...]
    device: torch.device
    compute: Compute  # what of it decides on loading


class Models:
    """Holds at most one base model with a slice in it; see the module."""

    def __init__(self) -> None:
        self._key: _Key | None = None
        self._base: PreTrainedModel | None = None
        self._preprocessor: Preprocessor | None = None
        self._placed: WrappedModel | None = None

    def with_slice(
        self,
        adapter: LoadedSlice,
        spec: RunSpec,
        device: str = "auto",
        model_path: str | None = None,
        *,
        base_slice: LoadedSlice | None = None,
        trains_A: bool = True,
        trains_B: bool = True,
        compute: Compute = DEFAULT_COMPUTE,
    ) -> LoadedModel:
        """The run's base model with the slice in it, on the device; `model_path` stands in for `spec.model.id`.

        `base_slice` is the slice that a fresh adapter `adapter` was, or is to be, trained on top of; see `placing.place_slice`.

        Raises:
            ModelError: the base model or its tokenizer does not load, or lacks weights that the run does not train.
            AdapterError: the slice does not fit the base model.
            DeviceError: there is no such device, or it cannot compute as `compute` says.
        """
        target = devices.resolve_device(device)
        check_compute(compute, target)
        revision = None if model_path else spec.model.revision
        names = tuple(tensor.name for tensor in spec.extra)
        loading = Compute(dtype=compute.dtype, quantization=compute.quantization, offload=compute.offload)
        key = _Key(model_path or spec.model.id, revision, spec.model, names, target, loading)
        try:
            devices.trim_heap()
            base, preprocessor = self._loaded(key)
            self._placed = place_slice(adapter, base, spec, self._placed, base_slice, trains_A, trains_B)
        except BaseException:
            self.clear()  # never train a half-loaded slice
            raise
        positions = _positions(base, preprocessor)
        return LoadedModel(
            self._placed.model,
            preprocessor,
            target,
            max_length=min(spec.training.max_length, positions),
            positions=positions,
            task_type=spec.model.task_type,
            dtype=base.dtype,
            problem_type=spec.model.problem_type,
            compute=compute,
        )

    def clear(self) -> None:
        """Forget the base model and free its memory."""
        self._key = self._base = self._preprocessor = self._placed = None

    def _loaded(self, key: _Key) -> tuple[PreTrainedModel, Preprocessor]:
        if self._key != key or self._base is None or self._preprocessor is None:
            self.clear()
            self._preprocessor = _preprocessor(key)
            self._base = _base_model(key, self._preprocessor)
            self._key = key
        return self._base, self._preprocessor


def _preprocessor(key: _Key) -> Preprocessor:
    if key.model.task_type == "IMAGE_CLASSIFICATION":
        return load_image_processor(key.path, key.revision)
    tokenizer = load_tokenizer(key.path, key.revision)
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ModelError(f"the tokenizer of {key.path} has neither a padding nor an end token; set pad_token.")
        tokenizer.pad_token = tokenizer.eos_token  # masked wherever it pads
    return tokenizer


def _base_model(key: _Key, preprocessor: Preprocessor) -> PreTrainedModel:
    try:
        config = load_config(key.path, key.revision, key.model)
        model, report = _from_pretrained(key, config)
    except (*LOADING_ERRORS, MemoryError) as error:
        if devices.is_out_of_memory(error):
            raise OutOfMemory(
                f"the base model {key.path!r} does not fit into the memory of {key.device}; load it smaller with "
                "--dtype bfloat16 or --quantization nf4, or end what else uses memory."
            ) from error
        raise not_loaded("base model", key.path, error) from error
    _check_weights(key, report)
    keep_packing(model)
    if isinstance(preprocessor, PreTrainedTokenizerBase):
        _check_vocabulary(key, model, preprocessor)
        for part in (model.config, model.config.get_text_config()):
            # a decoder's classification head looks for the last real token
            part.pad_token_id = preprocessor.pad_token_id
    return model


def _from_pretrained(key: _Key, config: PretrainedConfig) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The base model on its device, and transformers' report of what its files lacked."""
    whole = sorted({name.rpartition(".")[0] for name in key.extra})
    options = loading_options(key.compute, key.device, getattr(config, "dtype", None), whole)
    model, report = AUTO_CLASSES[key.model.task_type].from_pretrained(
        key.path,
        config=config,
        revision=key.revision or "main",
        output_loading_info=True,
        **class_options(key.model),
        **options,
    )
    return (model if "device_map" in options else model.to(key.device)), report


def load_encoding(spec: RunSpec, model_path: str | None) -> tuple[Preprocessor, int]:
    """The run's tokenizer or image processor, and how many tokens an example may have; loads no weights.

    Raises:
        ModelError: a file is missing, or the model does not suit the run's task.
    """
    revision = None if model_path else spec.model.revision
    key = _Key(model_path or spec.model.id, revision, spec.model, (), torch.device("cpu"), DEFAULT_COMPUTE)
    preprocessor = _preprocessor(key)
    try:
        config = load_config(key.path, key.revision, key.model)
        with torch.device("meta"):
            model = AUTO_CLASSES[key.model.task_type].from_config(config, trust_remote_code=False)
    except LOADING_ERRORS as error:
        raise not_loaded("configuration", key.path, error) from error
    return preprocessor, min(spec.training.max_length, _positions(model, preprocessor))


def _positions(base: PreTrainedModel, preprocessor: Preprocessor) -> int:
    """Tokens that the model takes: its configuration's, or a table's less the rows that RoBERTa and its kin never use."""
    if not isinstance(preprocessor, PreTrainedTokenizerBase):
        return NO_LIMIT_TOKENS
    limit = getattr(base.config.get_text_config(), "max_position_embeddings", None) or NO_LIMIT_TOKENS
    if limit < 0:  # XLNet's, which names none
        limit = NO_LIMIT_TOKENS
    for name, table in base.named_modules():
        offset = getattr(table, "padding_idx", None)
        if name.endswith("position_embeddings") and isinstance(table, torch.nn.Embedding) and offset is not None:
            limit = min(limit, table.num_embeddings - offset - 1)
    return int(min(limit, preprocessor.model_max_length))


def _check_weights(key: _Key, report: dict[str, Any]) -> None:
    """Weights that the files lack are random here and different at every participant, unless the run serves them."""
    absent = {str(name) for name in report["missing_keys"]} | {str(item[0]) for item in report["mismatched_keys"]}
    random = sorted(absent.difference(key.extra))
    if random:
        raise ModelError(
            f"{key.path} holds no weights for {', '.join(random[:5])}{' and more' if random[5:] else ''}; "
            "use a model that has them, or let the run's operator define them as extra tensors."
        )


def _check_vocabulary(key: _Key, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    embeddings = model.get_input_embeddings()
    assert isinstance(embeddings, torch.nn.Embedding)  # of every text model of transformers
    rows = embeddings.num_embeddings
    if len(tokenizer) > rows:
        raise ModelError(
            f"the tokenizer of {key.path} knows {len(tokenizer)} tokens, the model {rows}; use the model's own one."
        )
