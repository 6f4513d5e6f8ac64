"""A classifier whose head is random and stays so: the encoder alone must learn, which takes rank where a trained head would not.

The head lies in a folder of the base model, with the classes' directions orthonormal: every pair is equally far apart, so that no
draw of the head is easier than another. It is the same on every machine: drawn by NumPy in 64 bits from a fixed seed, and rounded
to 16 bits, below which machines' linear algebra differs.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from flexlora_client.errors import ModelError
from flexlora_client.training.models.checkpoint import DAMAGED
from flexlora_client.training.models.describe_model import describe
from flexlora_client.training.models.fingerprint import fingerprint
from flexlora_client.training.models.preprocessing import load_image_processor, load_tokenizer
from flexlora_client.training.models.task_classes import AUTO_CLASSES, class_options, load_config
from flexlora_shared.messages.runs import ExtraTensor, ModelSpec, TaskType
from flexlora_simulation.errors import DataError
from flexlora_simulation.workloads.made_models import made_model

SEED = 5


def with_frozen_head(model: str, task_type: TaskType, labels: Sequence[str], norm: float) -> str:
    """A folder of `model` with a random head of these classes, each one's weights of length `norm`, and without dropout.

    Tensors between the encoder and the last layer that its files lack (RoBERTa's dense layer) are orthonormal, biases zero.

    Raises:
        DataError: the model does not load, or is narrower than there are classes.
    """
    try:
        spec = ModelSpec(id=model, task_type=task_type, labels=tuple(labels))
        own = fingerprint(model, None, task_type, download=True)
        made_of = {"model": own.model_dump(mode="json"), "classes": len(labels), "norm": norm, "seed": SEED}
        return made_model("frozen-head", made_of, lambda folder: _write(spec, norm, folder))
    except (ModelError, ValueError, *DAMAGED) as error:
        raise DataError(f"workload.model: {error}") from error


def _write(spec: ModelSpec, norm: float, folder: Path) -> None:
    config = load_config(spec.id, None, spec)
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
        if hasattr(config, name):
            setattr(config, name, 0.0)
    network: PreTrainedModel = AUTO_CLASSES[spec.task_type].from_pretrained(
        spec.id, config=config, **class_options(spec)
    )
    head = describe(spec.id, spec.task_type, labels=spec.labels).extra
    parameters = dict(network.named_parameters())
    for name, values in _drawn(head, len(spec.labels), norm):
        parameters[name].data = torch.from_numpy(values)
    network.save_pretrained(folder)
    processor: Any = load_image_processor if spec.task_type == "IMAGE_CLASSIFICATION" else load_tokenizer
    processor(spec.id, None).save_pretrained(folder)


def _drawn(head: Sequence[ExtraTensor], classes: int, norm: float) -> Iterator[tuple[str, Any]]:
    """The head's tensors by name, float32."""
    generator = np.random.default_rng(SEED)
    for tensor in head:
        if tensor.init == "normal":
            rows, columns = tensor.shape
            if rows > columns:
                raise DataError(
                    f"workload.model: its {columns} features have no {rows} orthogonal directions; take a wider one"
                )
            values = np.linalg.qr(generator.standard_normal((columns, rows))).Q.T * (norm if rows == classes else 1.0)
        else:
            values = np.full(tensor.shape, 1.0 if tensor.init == "ones" else 0.0)
        yield tensor.name, values.astype(np.float16).astype(np.float32)
