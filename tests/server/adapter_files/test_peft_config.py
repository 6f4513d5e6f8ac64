"""The served `adapter_config.json`, opened by the real PEFT: every module gets the rank and scaling of its slice."""

import json
import math
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from flexlora_client.agent.slice_cache import check_config, request_for_round
from flexlora_client.errors import Corrupted
from flexlora_server.adapter_files.inspect_upload import upload_scaling
from flexlora_server.adapter_files.peft_config import adapter_config
from flexlora_server.adapter_files.slicing import served_scaling
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.messages.uploads import UploadCreate
from flexlora_shared.ranks import by_pattern, module_ranks
from tests.support.kit import spec

NAMES = [f"layers.{layer}.{name}" for layer in (0, 1, 11) for name in ("q_proj", "up_proj")]


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.up_proj = torch.nn.Linear(16, 16), torch.nn.Linear(16, 16)


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleDict({str(layer): Block() for layer in (0, 1, 11)})


@pytest.mark.parametrize("pattern", [{}, {"q_proj": 8}, {"layers.1.q_proj": 4, "q_proj": 8}, {"up_proj": 2}], ids=str)
@pytest.mark.parametrize(
    "scaling", [{"alpha": 16.0}, {"alpha_per_rank": 2.0}, {"alpha_per_rank": 2.0, "use_rslora": True}], ids=str
)
def test_peft_scales_a_slice_as_it_was_cut(scaling: dict[str, Any], pattern: dict[str, int]) -> None:
    modules = [{"name": name, "out_features": 16, "in_features": 16} for name in NAMES]
    run = RunSpec.model_validate(spec(modules=modules, ranks=[2, 4, 8], scaling=scaling))
    told = adapter_config(run, 4, pattern)
    # this model has no name, no revision and no language model's head
    lora = {key: told[key] for key in set(told) - {"peft_type", "task_type", "revision", "base_model_name_or_path"}}
    model = get_peft_model(Model(), LoraConfig(**lora))
    found = {
        name.removeprefix("base_model.model."): (module.r["default"], module.scaling["default"])
        for name, module in model.named_modules()
        if hasattr(module, "lora_A") and hasattr(module, "scaling")
    }
    assert set(found) == set(NAMES)
    for name, (rank, scale) in found.items():
        assert rank == by_pattern(name, 4, pattern)
        assert math.isclose(scale, served_scaling(run, rank), rel_tol=1e-12), name


@pytest.mark.parametrize("pattern", [{}, {"q_proj": 16}, {"layers.1.q_proj": 2, "q_proj": 16}], ids=str)
@pytest.mark.parametrize("scaling", [{"alpha": 16.0}, {"alpha_per_rank": 2.0}], ids=str)
def test_a_capped_module_is_scaled_by_its_own_rank(scaling: dict[str, Any], pattern: dict[str, int]) -> None:
    """Of 6 rows at rank 8 or 16: PEFT and the agent read the same rank and scaling from the file, and from the request."""
    modules = [{"name": n, "out_features": 6 if "q_proj" in n else 16, "in_features": 16} for n in NAMES]
    run = RunSpec.model_validate(spec(modules=modules, ranks=[2, 8, 16], scaling=scaling))
    told = adapter_config(run, 8, pattern)
    ranks = module_ranks(run.modules, 8, pattern)
    assert {ranks[name] for name in NAMES if "q_proj" in name} <= {2, 6}
    for name, rank in ranks.items():
        assert by_pattern(name, told["r"], told["rank_pattern"]) == rank
        alpha = by_pattern(name, told["lora_alpha"], told["alpha_pattern"])
        assert math.isclose(alpha / rank, served_scaling(run, rank), rel_tol=1e-12), name
    request = request_for_round(run, 1, 8, pattern)
    check_config(json.dumps(told).encode(), request)
    with pytest.raises(Corrupted, match="does not agree"):
        check_config(json.dumps(told | {"rank_pattern": pattern}).encode(), request)
    announced = {"rank": 8, "rank_pattern": pattern, "alpha": request.alpha, "alpha_pattern": request.alpha_pattern}
    upload = UploadCreate.model_validate({**announced, "examples": 1, "size": 1, "sha256": "0" * 64})
    for name, rank in ranks.items():
        assert math.isclose(upload_scaling(upload, name, rank), served_scaling(run, rank), rel_tol=1e-12), name
