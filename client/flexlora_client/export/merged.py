"""A merged model: the base model's weights with the adapter in them, as a folder that needs no adapter support."""

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from flexlora_client.errors import BadInput
from flexlora_client.training.contract import Compute
from flexlora_client.training.models.fingerprint import check_fingerprint
from flexlora_client.training.models.layers import lora_layers
from flexlora_client.training.models.load_model import Models
from flexlora_client.training.models.preprocessing import (
    LOADING_ERRORS,
    load_image_processor,
    load_tokenizer,
    not_loaded,
)
from flexlora_client.training.models.slice_files import read_slice
from flexlora_client.training.models.task_classes import load_config
from flexlora_shared.messages.runs import Dtype, RunSpec

MAX_SHARD = "4GB"  # of safetensors; what is larger is split, with an index


def write_merged(adapter: Path, spec: RunSpec, model_path: str | None, dtype: Dtype | None, output: Path) -> str:
    """Write the merged model of the adapter in folder `adapter` to `output`; its dtype. Without `dtype`, the base model's own.

    The base model is loaded once, onto the CPU, and changed in place: the peak is its size, and one layer in float32.

    Raises:
        BadInput: the base model is stored quantized, or a number does not fit into the dtype.
        ModelError: the base model does not load, or is not the run's.
        AdapterError: the adapter does not fit the base model.
    """
    place, revision = model_path or spec.model.id, None if model_path else spec.model.revision
    stored = _stored_dtype(place, revision, spec)
    wanted = dtype or stored
    check_fingerprint(spec.model, model_path)
    with warnings.catch_warnings():
        # PEFT's advice to untie an output head, which is done here, and that it noticed
        for about in ("Model (has|with) `tie_word_embeddings=True`", "Input and output embeddings are no longer tied"):
            warnings.filterwarnings("ignore", message=about)
        loaded = Models().with_slice(read_slice(adapter, spec), spec, "cpu", model_path, compute=Compute(dtype=wanted))
        _untie(loaded.model)
        merged: PreTrainedModel = loaded.model.merge_and_unload()
    merged.to(getattr(torch, wanted))  # heads, which are trained in float32
    for name, parameter in merged.named_parameters():
        if not torch.isfinite(parameter).all():
            raise BadInput(f"{name} has numbers that do not fit into {wanted}; name another --dtype")
    merged.save_pretrained(output, max_shard_size=MAX_SHARD)
    # loaded anew: the one that is trained with may have been given a padding token
    reads_text = spec.model.task_type != "IMAGE_CLASSIFICATION"
    preprocessor: Any = (load_tokenizer if reads_text else load_image_processor)(place, revision)
    preprocessor.save_pretrained(output)
    return wanted


def _stored_dtype(place: str, revision: str | None, spec: RunSpec) -> Dtype:
    try:
        config = load_config(place, revision, spec.model)
    except LOADING_ERRORS as error:
        raise not_loaded("configuration", place, error) from error
    if getattr(config, "quantization_config", None):
        raise BadInput(f"{place} is stored quantized, and an adapter cannot be merged into that; name the full --model")
    stored = getattr(config, "dtype", None)
    return {torch.float16: "float16", torch.bfloat16: "bfloat16"}.get(stored, "float32")  # type: ignore[arg-type, return-value]


def _untie(model: PeftModel) -> None:
    """Give an adapted output head weights of its own where it shares those of the embeddings, which must not change with it.

    PEFT then sees that they differ, and says so in the configuration.
    """
    network: Any = model.get_base_model()
    embeddings = network.get_input_embeddings()
    for _, layer in lora_layers(model):
        base: Any = layer.get_base_layer()
        if base.weight is embeddings.weight:
            base.weight = torch.nn.Parameter(base.weight.detach().clone(), requires_grad=False)
