"""Where the files of a base model lie: its weights and configuration, in a local folder, the hub's cache or on the hub."""

import json
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from safetensors import SafetensorError
from transformers.utils import (
    CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
)
from transformers.utils.hub import cached_file, extract_commit_hash

DAMAGED = (
    SafetensorError,
    UnpicklingError,
    EOFError,
)  # what weights that are damaged, or hold other than tensors, raise


def weight_files(model: str, revision: str | None, *, download: bool) -> tuple[Path, ...]:
    """The model's safetensors files, sorted by name; none where it has none. Without `download`, only what is here.

    Raises:
        OSError, ValueError: the hub cannot be reached, or the model's index is no JSON.
    """
    return _files(model, revision, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, download)


def has_weights(model: str, revision: str | None) -> bool:
    """Whether all of the model's weights lie here, as safetensors: others are not loaded. Raises: see `weight_files`."""
    return bool(weight_files(model, revision, download=False))


def _files(model: str, revision: str | None, index_name: str, name: str, download: bool) -> tuple[Path, ...]:
    """The files that the index names, or the one file; none where one is missing."""
    index = _find(model, revision, index_name, download)
    sharded = {} if index is None else json.loads(index.read_bytes())["weight_map"]
    names = sorted(set(sharded.values())) or [name]
    found = [_find(model, revision, name, download) for name in names]
    return tuple(path for path in found if path is not None) if None not in found else ()


def commit_of(model: str, revision: str | None) -> str | None:
    """The commit of a hub's model that a revision names, here or on the hub; None for a local folder."""
    config = None if Path(model).is_dir() else _find(model, revision, CONFIG_NAME, download=True)
    return None if config is None else extract_commit_hash(str(config), None)


def _find(model: str, revision: str | None, name: str, download: bool) -> Path | None:
    options: dict[str, Any] = {
        "_raise_exceptions_for_missing_entries": False,
        "_raise_exceptions_for_gated_repo": download,
        "_raise_exceptions_for_connection_errors": download,
    }
    path = cached_file(model, name, revision=revision or "main", local_files_only=not download, **options)
    return None if path is None else Path(path)
