"""An adapter in GGUF, for llama.cpp and what is built on it.

Follows llama.cpp's `convert_lora_to_gguf.py`: the keys of the header, the tensors' names (base tensor and `.lora_a` or
`.lora_b`, by gguf's TensorNameMap) and, of the Llama family, the order of the rows of `q_proj` and `k_proj`, which llama.cpp
keeps interleaved for its rotary embedding. The architectures here are those whose linear layers its converter
(`conversion/*.py`) changes in no other way; the rest are refused.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from flexlora_client.errors import BadInput
from flexlora_client.training.contract import ADAPTER_FILE
from flexlora_client.training.models.preprocessing import LOADING_ERRORS, not_loaded
from flexlora_client.training.models.task_classes import load_config
from flexlora_shared.layout import key_A, key_B
from flexlora_shared.messages.runs import RunSpec

GGUF_FILE = "adapter.gguf"
ARCHITECTURES = {  # transformers' model_type -> gguf's name of the architecture
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "phi3": "phi3",
}
PERMUTED = "llama"
OUTPUT = "output.weight"


@dataclass(frozen=True)
class _Base:
    """What the conversion needs to know of the base model."""

    place: str
    architecture: str
    layers: int
    heads: int
    key_heads: int
    head_dim: int
    tied: bool


def write_gguf(folder: Path, spec: RunSpec, model_path: str | None) -> Path:
    """Write the portable adapter in `folder` as GGUF beside it, in float32; the file's path.

    Raises:
        BadInput: llama.cpp has no place for a part of it, or its conversion is not known here.
        ModelError: the base model's configuration does not load.
    """
    import gguf  # of the extra gguf

    base = _base(spec, model_path)
    tensors = load_file(folder / ADAPTER_FILE)
    architecture = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}[base.architecture]
    names = gguf.get_tensor_name_map(architecture, base.layers)
    rank = len(tensors[key_A(spec.modules[0].name)])
    path = folder / GGUF_FILE
    writer = gguf.GGUFWriter(path, base.architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(rank))
    writer.add_name(spec.name)
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, spec.model.id)
    for module in spec.modules:
        name = _name(names, module.name, base)
        A, B = tensors[key_A(module.name)].float(), tensors[key_B(module.name)].float()
        writer.add_tensor(f"{name}.lora_a", A.contiguous().numpy())
        writer.add_tensor(f"{name}.lora_b", _rows(B, module.name, base).contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def permute(B: Tensor, heads: int) -> Tensor:
    """The rows of a `q_proj` or `k_proj` in llama.cpp's order: of each head the two halves, interleaved."""
    return B.reshape(heads, 2, len(B) // heads // 2, *B.shape[1:]).swapaxes(1, 2).reshape(B.shape)


def _base(spec: RunSpec, model_path: str | None) -> _Base:
    if spec.model.task_type != "CAUSAL_LM":
        raise BadInput(
            f"llama.cpp takes adapters of CAUSAL_LM alone, this run is of {spec.model.task_type}; use --merge"
        )
    if spec.extra:
        raise BadInput(
            f"a GGUF adapter cannot hold {spec.extra[0].name}, which is trained in full; use --merge and llama.cpp's "
            "convert_hf_to_gguf.py on the merged model"
        )
    place = model_path or spec.model.id
    try:
        config: Any = load_config(place, None if model_path else spec.model.revision, spec.model)
    except LOADING_ERRORS as error:
        raise not_loaded("configuration", place, error) from error
    if config.model_type not in ARCHITECTURES:
        raise BadInput(
            f"how llama.cpp keeps the layers of a {config.model_type} model is not known here "
            f"(known are {', '.join(ARCHITECTURES)}); use llama.cpp's convert_lora_to_gguf.py on the exported folder, or --merge"
        )
    heads = config.num_attention_heads
    keys = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    tied = bool(getattr(config, "tie_word_embeddings", False))
    return _Base(place, ARCHITECTURES[config.model_type], config.num_hidden_layers, heads, keys, head_dim, tied)


def _name(names: Any, module: str, base: _Base) -> str:
    """gguf's name of a module's weight."""
    name: str | None = names.get_name(f"{module}.weight", try_suffixes=(".weight",))
    if name is None:
        raise BadInput(f"llama.cpp has no tensor for {module} of a {base.architecture} model; use --merge")
    if name == OUTPUT and base.tied:
        raise BadInput(
            f"{module} shares its weights with the embeddings, and llama.cpp keeps no tensor of its own for it; use --merge"
        )
    return name


def _rows(B: Tensor, module: str, base: _Base) -> Tensor:
    if base.architecture != PERMUTED or not module.endswith(("q_proj", "k_proj")):
        return B
    heads = base.heads if module.endswith("q_proj") else base.key_heads
    if len(B) != heads * base.head_dim:
        raise BadInput(
            f"{base.place} has {heads} heads of {base.head_dim} where {module} has {len(B)} rows: it is not the run's base "
            "model; name that with --model"
        )
    return permute(B, heads)
