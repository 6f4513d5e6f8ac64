"""Builds PEFT's `adapter_config.json` for a slice, so that it loads with plain `PeftModel.from_pretrained`."""

from collections.abc import Mapping
from typing import Any

from flexlora_shared.layout import peft_task_type, saved_modules
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.ranks import capped_pattern, longest_first


def adapter_config(spec: RunSpec, rank: int, pattern: Mapping[str, int]) -> dict[str, Any]:
    """The configuration of the slice of `rank` and `pattern` (peft.LoraConfig, as JSON)."""
    pattern = longest_first(capped_pattern(spec.modules, rank, pattern))
    alpha = spec.scaling.alpha_of(rank)
    alphas = {key: spec.scaling.alpha_of(own) for key, own in pattern.items()}
    return {
        "peft_type": "LORA",
        "task_type": peft_task_type(spec),
        "base_model_name_or_path": spec.model.id,
        "revision": spec.model.revision,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": pattern,
        # all or none: of two keys that match a module PEFT takes the first, so none may be left out
        "alpha_pattern": alphas if set(alphas.values()) - {alpha} else {},
        "use_rslora": spec.scaling.use_rslora,
        "lora_dropout": spec.training.lora_dropout,
        "bias": "none",
        "target_modules": [module.name for module in spec.modules],
        "modules_to_save": saved_modules(spec.extra) or None,
    }
