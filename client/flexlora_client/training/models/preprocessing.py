"""Loads what turns inputs into numbers: a model's tokenizer, or its image processor."""

from typing import Any

from transformers import AutoImageProcessor, AutoTokenizer, BaseImageProcessor, PreTrainedTokenizerBase

from flexlora_client.errors import ModelError

LOADING_ERRORS = (OSError, ValueError, KeyError, RuntimeError, ImportError, AttributeError, TypeError)


def load_tokenizer(path: str, revision: str | None) -> PreTrainedTokenizerBase:
    """The tokenizer in `path`, a folder or a hub id. Raises: ModelError."""
    loaded: PreTrainedTokenizerBase = _load("tokenizer", AutoTokenizer, path, revision)
    return loaded


def load_image_processor(path: str, revision: str | None) -> BaseImageProcessor:
    """The image processor in `path`, a folder or a hub id. Raises: ModelError."""
    # Pillow's backend, whatever is installed: others resize differently, and participants would train on other pixels
    loaded: BaseImageProcessor = _load("image processor", AutoImageProcessor, path, revision, backend="pil")
    return loaded


def _load(what: str, auto: Any, path: str, revision: str | None, **options: str) -> Any:
    try:
        return auto.from_pretrained(path, revision=revision or "main", trust_remote_code=False, **options)
    except LOADING_ERRORS as error:
        raise not_loaded(what, path, error) from error


def not_loaded(what: str, path: str, error: Exception) -> ModelError:
    """The error to raise where a part of the model does not load."""
    reason = str(error).strip().splitlines()
    return ModelError(
        f"the {what} {path!r} does not load ({type(error).__name__}: {reason[0] if reason else 'no reason'}); "
        "give the local path of a directory that holds it, or make its model hub reachable."
    )
