"""Loads the base model once and puts each round's slice into it.

`Models` holds at most one base model: asking for another one drops the first before the second is loaded, so that the
peak is one model. It is not for several threads at a time.
"""

from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from flexlora_client.errors import ModelError, OutOfMemory
from flexlora_client.training.contract import DEFAULT_COMPUTE, Compute
from flexlora_client.training.models import devices
from flexlora_client.training.models.placing import WrappedModel, place_slice
from flexlora_client.training.models.precision import HALF_DTYPES, check_compute, keep_packing, loading_options
from flexlora_client.training.models.slice_files import LoadedSlice
from flexlora_shared.messages.runs import ModelSpec, RunSpec

NO_LIMIT_TOKENS = 2**31  # for a model that names no limit
LOADING_ERRORS = (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError)


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to train or evaluate, with its tokenizer and limits."""

    model: PeftModel
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    max_length: int  # tokens an example may have: the run's bound, or the model's own where that is less
    positions: int  # tokens the model itself takes
    classifies: bool
    dtype: torch.dtype  # of the base model
    compute: Compute = DEFAULT_COMPUTE  # how to compute with it

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
        assert isinstance(token, int)  # by _tokenizer
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
        self._tokenizer: PreTrainedTokenizerBase | None = None
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
            base, tokenizer = self._loaded(key)
            self._placed = place_slice(adapter, base, spec, self._placed, base_slice, trains_A)
        except BaseException:
            self.clear()  # never train a half-loaded slice
            raise
        positions = min(
            getattr(base.config, "max_position_embeddings", None) or NO_LIMIT_TOKENS, tokenizer.model_max_length
        )
        return LoadedModel(
            self._placed.model,
            tokenizer,
            target,
            max_length=min(spec.training.max_length, positions),
            positions=positions,
            classifies=spec.model.task_type == "SEQ_CLS",
            dtype=base.dtype,
            compute=compute,
        )

    def clear(self) -> None:
        """Forget the base model and free its memory."""
        self._key = self._base = self._tokenizer = self._placed = None

    def _loaded(self, key: _Key) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        if self._key != key or self._base is None or self._tokenizer is None:
            self.clear()
            self._tokenizer = _tokenizer(key)
            self._base = _base_model(key, self._tokenizer)
            self._key = key
        return self._base, self._tokenizer


def _tokenizer(key: _Key) -> PreTrainedTokenizerBase:
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(key.path, revision=key.revision or "main")
    except LOADING_ERRORS as error:
        raise _not_loaded("tokenizer", key, error) from error
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ModelError(f"the tokenizer of {key.path} has neither a padding nor an end token; set pad_token.")
        tokenizer.pad_token = tokenizer.eos_token  # masked wherever it pads
    return tokenizer


def _base_model(key: _Key, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    options: dict[str, Any] = {}
    auto: Any = AutoModelForCausalLM
    if key.model.task_type == "SEQ_CLS":
        if not key.model.labels:
            raise ModelError("the run classifies but has no labels; its operator must define them.")
        auto = AutoModelForSequenceClassification
        options = {"num_labels": len(key.model.labels), "ignore_mismatched_sizes": True}
    try:
        config = AutoConfig.from_pretrained(key.path, revision=key.revision or "main")
        whole = sorted({name.rpartition(".")[0] for name in key.extra})
        options |= loading_options(key.compute, key.device, getattr(config, "dtype", None), whole)
        model, report = auto.from_pretrained(
            key.path, revision=key.revision or "main", output_loading_info=True, **options
        )
    except (*LOADING_ERRORS, MemoryError) as error:
        if devices.is_out_of_memory(error):
            raise OutOfMemory(
                f"the base model {key.path!r} does not fit into the memory of {key.device}; load it smaller with "
                "--dtype bfloat16 or --quantization nf4, or end what else uses memory."
            ) from error
        raise _not_loaded("base model", key, error) from error
    _check_weights(key, report)
    _check_vocabulary(key, model, tokenizer)
    keep_packing(model)
    model.config.pad_token_id = tokenizer.pad_token_id  # a decoder's classification head looks for the last real token
    loaded: PreTrainedModel = model if "device_map" in options else model.to(key.device)
    return loaded


def _not_loaded(what: str, key: _Key, error: Exception) -> ModelError:
    reason = str(error).strip().splitlines()
    return ModelError(
        f"the {what} {key.path!r} does not load ({type(error).__name__}: {reason[0] if reason else 'no reason'}); "
        "give the local path of a directory that holds it, or make its model hub reachable."
    )


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
