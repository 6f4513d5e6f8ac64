"""PEFT's `adapter_config.json` for a slice, so that an adapter opens with plain `PeftModel.from_pretrained`."""

from collections.abc import Mapping
from typing import Any

from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.ranks import longest_first


def adapter_config(spec: RunSpec, rank: int, pattern: Mapping[str, int]) -> dict[str, Any]:
    """The configuration of the slice of `rank` and `pattern` (peft.LoraConfig, as JSON)."""
    pattern = longest_first(pattern)
    alpha = spec.scaling.alpha_of(rank)
    alphas = {key: spec.scaling.alpha_of(own) for key, own in pattern.items()}
    return {
        "peft_type": "LORA",
        "task_type": spec.model.task_type,
        "base_model_name_or_path": spec.model.id,
        "revision": spec.model.revision,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": pattern,
        "alpha_pattern": {key: own for key, own in alphas.items() if own != alpha},
        "use_rslora": spec.scaling.use_rslora,
        "lora_dropout": spec.training.lora_dropout,
        "bias": "none",
        "target_modules": [module.name for module in spec.modules],
        "modules_to_save": sorted({extra.name.rpartition(".")[0] for extra in spec.extra}) or None,
    }
