"""Turns a downloaded adapter into the form asked for."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from flexlora_client.errors import BadInput
from flexlora_client.export.gguf_adapter import write_gguf
from flexlora_client.export.limits import adapter_notes
from flexlora_client.export.merged import write_merged
from flexlora_client.export.model_card import Form
from flexlora_client.export.portable import Portable, make_portable
from flexlora_client.files import make_folder
from flexlora_client.training.contract import ADAPTER_FILE, CONFIG_FILE
from flexlora_shared.messages.runs import Dtype, RunSpec

UNIT_ROUNDOFF = 2**-8  # of bfloat16, the coarsest format of adapters: what normal numbers lose at most


@contextmanager
def _writing() -> Iterator[None]:
    """A full disk is no OSError to the library that writes tensors."""
    try:
        yield
    except SafetensorError as error:
        raise BadInput(f"the export cannot be written ({error}); free space, or name another --output") from error


@_writing()
def portable(folder: Path, spec: RunSpec) -> Form:
    """The adapter in `folder` with one rank for all modules and the scale in lora_B. Raises: see `make_portable`."""
    return _portable(folder, spec, make_portable(folder, spec), "for llama.cpp and Ollama, export with --gguf")


@_writing()
def with_gguf(folder: Path, spec: RunSpec, model_path: str | None) -> Form:
    """The portable form, with the same in GGUF beside it. Raises: see `make_portable` and `write_gguf`."""
    made = make_portable(folder, spec)
    path = write_gguf(folder, spec, model_path)
    return _portable(folder, spec, made, f"{path.name} is the same for llama.cpp and Ollama, in float32")


@_writing()
def merged(folder: Path, spec: RunSpec, model_path: str | None, dtype: Dtype | None) -> Form:
    """The base model with the adapter in `folder` merged into it, in the adapter's place. Raises: see `write_merged`."""
    adapter = make_folder(folder.parent / "adapter")
    for name in (CONFIG_FILE, ADAPTER_FILE):
        (folder / name).replace(adapter / name)
    written = write_merged(adapter, spec, model_path, dtype, folder)
    return Form("merged", f"merged into the base model's weights, in {written}")


def _portable(folder: Path, spec: RunSpec, made: Portable, more: str) -> Form:
    rounding = f"to a relative {made.rounding:.1e}" if made.rounding else "without rounding"
    numbers = f"every module has rank {made.rank}, smaller ones padded with zeros; lora_B carries the scale, {rounding}"
    notes = adapter_notes(json.loads((folder / CONFIG_FILE).read_bytes()), spec)
    if made.rounding > UNIT_ROUNDOFF:
        notes += (
            f"lora_B with the scale in it is too small for {spec.upload_dtype}: a module changes by a relative "
            f"{made.rounding:.1e}; --exact keeps the scale apart, --merge writes a merged model.",
        )
    return Form("portable", f"portable: {numbers}; {more}", notes)
