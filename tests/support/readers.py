"""How programs other than PEFT read an exported adapter, in a few lines each: what they check, ignore and refuse.

Written after their sources: vLLM `vllm/lora/peft_helper.py` and `lora_model.py`, SGLang `srt/lora/lora_config.py`, `lora.py` and
`lora_manager.py`, llama.cpp `src/llama-adapter.cpp` and `conversion/llama.py`, Ollama `convert/convert_adapter.go` and
`convert_llama_adapter.go`. Each adds the adapter to the weights of a model of transformers, or raises `Refused`.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from flexlora_shared.layout import KEY_PREFIX, key_A, key_B

MAX_LORA_RANK = 512  # the largest that vLLM's option takes


class Refused(Exception):
    """The program would not load the folder."""


def vllm(model: PreTrainedModel, folder: Path) -> None:
    """Reads r, lora_alpha and use_rslora, one of each for all modules; never a pattern."""
    config, tensors = _read(folder)
    if config.get("modules_to_save"):
        raise Refused("vLLM only supports modules_to_save being None.")
    if config["r"] > MAX_LORA_RANK:
        raise Refused(f"LoRA rank {config['r']} is greater than max_lora_rank {MAX_LORA_RANK}.")
    scale = config["lora_alpha"] / (math.sqrt(config["r"]) if config.get("use_rslora") else config["r"])
    for key in tensors:
        if not key.endswith((".lora_A.weight", ".lora_B.weight")):
            raise Refused(f"{key} is unsupported LoRA weight")
    for name, A, B in _pairs(tensors):
        _add(model, name, scale * B @ A)


def sglang(model: PreTrainedModel, folder: Path) -> None:
    """Refuses patterns that change a value; ignores use_rslora, and tensors that are no factors."""
    config, tensors = _read(folder)
    for field, default in (("rank_pattern", config["r"]), ("alpha_pattern", config["lora_alpha"])):
        if any(value != default for value in (config.get(field) or {}).values()):
            raise Refused(f"{field} is not supported")
    for name, A, B in _pairs(tensors):
        if name.split(".")[-1] in {target.split(".")[-1] for target in config["target_modules"]}:
            _add(model, name, config["lora_alpha"] / config["r"] * B @ A)


def ollama(model: PreTrainedModel, folder: Path) -> None:
    """Imports a PEFT folder for a base model of the architecture llama.

    Transposes lora_A where it has more rows than columns, and lora_B where it has less, as MLX stores them. Of q_proj and
    k_proj it reorders lora_A, where llama.cpp's converter reorders lora_B. (It also rounds to F16, which is left out here.)
    """
    config, tensors = _read(folder)
    if not isinstance(config["lora_alpha"], int):
        raise Refused("json: cannot unmarshal number into Go struct field AdapterParameters.lora_alpha of type uint32")
    for key in tensors:
        if not key.endswith((".lora_A.weight", ".lora_B.weight")):
            raise Refused(f"LoRA tensor '{key}' has unexpected suffix")
    for name, A, B in _pairs(tensors):
        heads = _heads(model, name)
        if heads:
            A = A.reshape(heads, 2, A.shape[1] // heads // 2, A.shape[0]).swapaxes(1, 2).reshape(A.shape)
            B = _unpermuted(B, heads)
        A, B = (A.T if A.shape[0] > A.shape[1] else A), (B.T if B.shape[0] < B.shape[1] else B)
        _add(model, name, config["lora_alpha"] / B.shape[1] * B @ A)


def llama_cpp(model: PreTrainedModel, path: Path) -> None:
    """Reads a GGUF adapter: one alpha, the rank of each tensor; rows of q_proj and k_proj lie as in a GGUF of the base model."""
    import gguf

    reader = gguf.GGUFReader(path)
    told = {name: field.contents() for name, field in reader.fields.items()}
    if (told["general.type"], told["adapter.type"]) != ("adapter", "lora"):
        raise Refused("expect general.type to be 'adapter'")
    if told["general.architecture"] != "llama":
        raise Refused("model arch and LoRA arch mismatch")
    tensors = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}
    base = _gguf_names(model)
    for name in {name.rpartition(".lora_")[0] for name in tensors}:
        if name not in base:
            raise Refused(f"LoRA tensor '{name}' does not exist in base model (hint: maybe wrong base model?)")
        A, B = tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"]
        module = base[name]
        heads = _heads(model, module)
        update = told["adapter.lora.alpha"] / B.shape[1] * B @ A
        _add(model, module, _unpermuted(update, heads) if heads else update)


def _gguf_names(model: PreTrainedModel) -> dict[str, str]:
    """The modules of a Llama by the names that their weights have in a GGUF of it."""
    parts = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    names = {
        f"blk.{layer}.{short}.weight": f"model.layers.{layer}.{long}"
        for layer in range(model.config.num_hidden_layers)
        for long, short in parts.items()
    }
    return names if model.config.tie_word_embeddings else names | {"output.weight": "lm_head"}


def _heads(model: PreTrainedModel, name: str) -> int:
    if name.endswith("q_proj"):
        return int(model.config.num_attention_heads)
    return int(model.config.num_key_value_heads) if name.endswith("k_proj") else 0


def _unpermuted(rows: Tensor, heads: int) -> Tensor:
    """Rows in transformers' order of rows in llama.cpp's: row 2 i + half of a head is row half * size / 2 + i."""
    size = len(rows) // heads
    order = [head * size + 2 * i + half for head in range(heads) for half in range(2) for i in range(size // 2)]
    return rows[order]


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    config = json.loads((folder / "adapter_config.json").read_bytes())
    tensors = load_file(folder / "adapter_model.safetensors")
    return config, {key: tensor.float() for key, tensor in tensors.items()}


def _pairs(tensors: dict[str, Tensor]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name of the module, lora_A and lora_B."""
    for key in tensors:
        if key.endswith(".lora_A.weight"):
            name = key.removeprefix(KEY_PREFIX).removesuffix(".lora_A.weight")
            yield name, tensors[key_A(name)], tensors[key_B(name)]


def _add(model: PreTrainedModel, name: str, update: Tensor) -> None:
    """Add to the weights of one layer, which nothing else shares afterwards."""
    layer = model.get_submodule(name)
    assert isinstance(layer.weight, Tensor)
    layer.weight = nn.Parameter(layer.weight.detach() + update)
