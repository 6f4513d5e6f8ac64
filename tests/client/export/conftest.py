"""Adapters as a coordinator serves them, and what PEFT computes with them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from flexlora_client.training.contract import ADAPTER_FILE, CONFIG_FILE
from flexlora_server.adapter_files.peft_config import adapter_config
from flexlora_shared.layout import adapter_shapes
from flexlora_shared.messages.runs import Dtype, ModuleSpec, RunSpec, Scaling, TaskType
from flexlora_shared.ranks import module_ranks
from tests.support.tiny_models import load_base, load_peft, make_llama, make_run

IDS = torch.tensor([[5, 9, 200, 17, 33, 120], [41, 2, 77, 250, 6, 99]])


@dataclass(frozen=True)
class Case:
    """A run's scaling, and a slice of it."""

    scaling: Scaling
    pattern: Mapping[str, int] = field(default_factory=dict)
    dtype: Dtype = "float32"
    task: TaskType = "CAUSAL_LM"
    tied: bool = False
    transposed: bool = False  # layers are Conv1D, which PEFT is told


PATTERN = {"q_proj": 8, "layers.1.mlp.down_proj": 2}
CASES = {
    "patterns": Case(Scaling(alpha=8.0), PATTERN),
    "rslora": Case(Scaling(alpha=8.0, use_rslora=True), PATTERN),
    "fixed-alpha": Case(Scaling(alpha=16.0)),
    "constant-scaling": Case(Scaling(alpha_per_rank=2.0), PATTERN),
    "fractional-alpha": Case(Scaling(alpha=2.5)),
    "float16": Case(Scaling(alpha=8.0), PATTERN, dtype="float16"),
    "tied-head": Case(Scaling(alpha=8.0), PATTERN, tied=True),
    "classification-head": Case(Scaling(alpha=8.0), PATTERN, task="SEQ_CLS"),
}


@dataclass(frozen=True)
class Served:
    """A slice in a folder, its run and base model, and the logits that PEFT computes with it."""

    folder: Path
    base: Path
    spec: RunSpec
    logits: Tensor

    def model(self) -> PreTrainedModel:
        """A fresh base model."""
        return load_base(self.base, self.spec)


def logits_of(model: PreTrainedModel | PeftModel) -> Tensor:
    """What the model computes of fixed tokens, all attended to."""
    model.eval()
    with torch.no_grad():
        found: Tensor = model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
    return found


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """A Llama, and one whose output head is tied to its embeddings (by True)."""
    plain, tied = make_llama(tmp_path_factory.mktemp("plain")), make_llama(tmp_path_factory.mktemp("tied"))
    config = LlamaConfig.from_pretrained(tied)
    config.tie_word_embeddings = True
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(tied)
    return {False: plain, True: tied}


@pytest.fixture
def served(models: dict[bool, Path], tmp_path: Path, request: pytest.FixtureRequest) -> Served:
    """The slice of rank 4 of `request.param`, the name of a case."""
    case = CASES[request.param]
    return make_served(case, models[case.tied], tmp_path / "adapter")


def make_served(case: Case, base: Path, folder: Path) -> Served:
    """The slice of rank 4 that a coordinator would serve in this case, random."""
    spec = make_run(base, case.task, scaling=case.scaling, upload_dtype=case.dtype)
    if case.tied:
        head = ModuleSpec(name="lm_head", out_features=300, in_features=32)
        spec = spec.model_copy(update={"modules": (*spec.modules, head)})
    config = adapter_config(spec, 4, case.pattern)
    ranks = module_ranks(spec.modules, 4, case.pattern)
    generator, dtype = torch.Generator().manual_seed(0), getattr(torch, case.dtype)
    folder.mkdir()
    tensors = {
        key: (0.1 * torch.randn(shape, generator=generator)).to(dtype)
        for key, shape in adapter_shapes(spec.modules, spec.extra, ranks).items()
    }
    save_file(tensors, folder / ADAPTER_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps(config | {"fan_in_fan_out": case.transposed}))
    return Served(folder, base, spec, logits_of(load_peft(base, spec, folder)))
