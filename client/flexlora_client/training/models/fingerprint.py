"""What identifies a base model: digests of a few of its weights and of what its tokenizer does.

Weights: SHA-256 over at most 16 tensors of the safetensors files, spread evenly over all names in sorted order; of each its
name, dtype, shape and first 64 KiB. How the files are sharded does not matter, the number format they are stored in does. The
model is not loaded, so that it does not matter either in which precision an agent would load it.

Tokenizer: SHA-256 over its vocabulary, special tokens, chat template, and the ids of a few texts. Of images instead: what the
image processor resizes to, and its normalisation. Neither depends on the version of the files' format.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from transformers import BaseImageProcessor, PreTrainedTokenizerBase

from flexlora_client.errors import ModelError
from flexlora_client.training.models.checkpoint import weight_files
from flexlora_client.training.models.preprocessing import load_image_processor, load_tokenizer
from flexlora_shared.messages.runs import Fingerprint, ModelSpec, TaskType

TENSORS = 16
BYTES_A_TENSOR = 1 << 16
MAX_HEADER = 100_000_000  # bytes; safetensors' own limit
TEXTS = (
    "Hello, world! It's 12345.67 past 8 o'clock.",
    "  two spaces,\ttab\n\nnew lines  ",
    "Größe, naïve café, ÅNGSTRÖM, e\u0301",
    "Привет 世界 こんにちは مرحبا 🙂👍🏽",
    "def f(x):\n    return {'a': [x ** 2, not x]}",
)
SPECIAL = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
IMAGE_SETTINGS = (
    "size",
    "crop_size",
    "do_resize",
    "do_center_crop",
    "do_rescale",
    "do_normalize",
    "rescale_factor",
    "image_mean",
    "image_std",
    "resample",
)


def fingerprint(
    model: str, revision: str | None = None, task_type: TaskType = "CAUSAL_LM", *, download: bool = False
) -> Fingerprint:
    """The fingerprint of a model, a folder or a hub id. Without `download`, only weights that are here are looked at.

    Raises:
        ModelError: its weights are not here or are no safetensors, or its tokenizer or image processor does not load.
    """
    images = task_type == "IMAGE_CLASSIFICATION"
    return Fingerprint(
        weights=_weights(model, revision, download),
        tokenizer=_images(load_image_processor(model, revision))
        if images
        else _tokens(load_tokenizer(model, revision)),
    )


def check_fingerprint(model: ModelSpec, path: str | None = None) -> Fingerprint | None:
    """The participant's own fingerprint, which is the run's; None where the run has none. `path` stands in for the id.

    Raises:
        ModelError: the weights or the tokenizer are not those that the run was defined with, or do not load.
    """
    expected = model.fingerprint
    if expected is None:
        return None
    place = path or model.id
    own = fingerprint(place, None if path else model.revision, model.task_type, download=True)
    processor = "image processor" if model.task_type == "IMAGE_CLASSIFICATION" else "tokenizer"
    for what, same in (("weights", own.weights == expected.weights), (processor, own.tokenizer == expected.tokenizer)):
        if not same:
            raise ModelError(
                f"the {what} in {place} {'is' if what == 'tokenizer' else 'are'} not the run's: it trains "
                f"{model.id}{f' at revision {model.revision}' if model.revision else ''}; use that model."
            )
    return own


def _weights(model: str, revision: str | None, download: bool) -> str:
    try:
        files = weight_files(model, revision, download=download)
        entries = {name: (path, entry) for path in files for name, entry in _tensors(path).items()}
        names = sorted(entries)
        if not names:
            raise ModelError(f"{model} has no weights in safetensors files on this machine.")
        count = min(TENSORS, len(names))
        digest = hashlib.sha256()
        for index in range(count):
            name = names[index * (len(names) - 1) // max(1, count - 1)]
            path, entry = entries[name]
            digest.update(_canonical([name, entry["dtype"], entry["shape"]]) + _first_bytes(path, entry))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"the weights of {model} cannot be read ({error}); give a folder that holds them.") from error
    return digest.hexdigest()


def _tensors(path: Path) -> dict[str, dict[str, Any]]:
    """A safetensors file's header, with each tensor's place in the file as `begin` and `end`."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > MAX_HEADER:
            raise ValueError(f"{path.name} is no safetensors file")
        header = json.loads(file.read(size))
    offset = 8 + size
    return {
        name: entry | {"begin": offset + entry["data_offsets"][0], "end": offset + entry["data_offsets"][1]}
        for name, entry in header.items()
        if name != "__metadata__"
    }


def _first_bytes(path: Path, entry: dict[str, Any]) -> bytes:
    with path.open("rb") as file:
        file.seek(entry["begin"])
        return file.read(min(BYTES_A_TENSOR, entry["end"] - entry["begin"]))


def _tokens(tokenizer: PreTrainedTokenizerBase) -> str:
    does = {
        "vocabulary": sorted(tokenizer.get_vocab().items()),
        "special": {name: getattr(tokenizer, f"{name}_token_id") for name in SPECIAL},
        "template": tokenizer.chat_template,
        "texts": [list(tokenizer(text, verbose=False).input_ids) for text in TEXTS],
    }
    return hashlib.sha256(_canonical(does)).hexdigest()


def _images(processor: BaseImageProcessor) -> str:
    settings = processor.to_dict()
    return hashlib.sha256(_canonical({name: settings.get(name) for name in IMAGE_SETTINGS})).hexdigest()


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=True).encode()
