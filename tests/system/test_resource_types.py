"""The four resource types of the FlexLoRA paper in one run of real training, against dense matrices in float64.

Types 1 and 2 train every layer at rank 8 and 30, type 3 attention at 30 and the rest at 200, type 4 every layer at 200. The
model's k_proj and v_proj have 128 rows: there, 200 means 128.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from flexlora_client.training.data.examples import Prompted
from flexlora_client.training.loop.standard import StandardTrainer
from flexlora_client.training.models.describe_model import describe
from flexlora_client.training.models.load_model import Models
from flexlora_shared.layout import key_A, key_B
from flexlora_shared.messages.runs import RunSpec, Scaling, TrainingSpec
from tests.server.aggregation.oracle import Upload, averaged, relative_error, truncated
from tests.support.kit import Participant, Served, served_on_sqlite
from tests.support.tiny_models import make_job, make_tokenizer

Matrix = NDArray[np.float64]
ATTENTION = dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), 30)
ALPHA = 16.0


@dataclass(frozen=True)
class ResourceType:
    """Rank, pattern and number of examples of one participant."""

    rank: int
    examples: int
    pattern: Mapping[str, int] = field(default_factory=dict)

    def rank_of(self, module: str, rows: int) -> int:
        return min(self.pattern.get(module.rpartition(".")[2], self.rank), rows)


TYPES = (ResourceType(8, 2), ResourceType(30, 4), ResourceType(200, 3, ATTENTION), ResourceType(200, 5))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Served]:
    with served_on_sqlite(tmp_path) as running:
        yield running


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A Llama of one layer, wide enough for rank 200."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=256,
        intermediate_size=320,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.slow
def test_the_papers_resource_types(base: Path, site: Served, tmp_path: Path) -> None:
    described = describe(str(base))
    spec = RunSpec(
        name="test",
        model=described.model.model_copy(update={"fingerprint": None}),  # clients made by hand cannot tell it
        modules=described.modules,
        ranks=(8, 30, 200),
        scaling=Scaling(alpha=ALPHA),
        rounds=2,
        min_clients=4,
        min_updates=4,
        error_bound=1.0,
        training=TrainingSpec(learning_rate=1e-3, batch_size=2, max_length=32),
    )
    site.operator.expect(201, "POST", "/v1/runs", json=spec.model_dump(mode="json") | {"weighting": "examples"})
    site.operator.expect(200, "POST", "/v1/runs/test/start")
    site.work()
    people = [site.enroll(f"type-{number}") for number in (1, 2, 3, 4)]
    trainers = StandardTrainer(Models())
    for number in (1, 2):
        uploads = hold_round(site, spec, people, trainers, tmp_path / str(number))
        for module in spec.modules:
            expected = averaged([products[module.name] for products in uploads])
            assert np.linalg.norm(expected) > 1e-4, "something was learned"
            for person, kind in zip(people, TYPES, strict=True):
                rank = kind.rank_of(module.name, min(module.out_features, module.in_features))
                tensors = served(site, person, kind, number, tmp_path / f"{number}-{kind.rank}-{len(kind.pattern)}")
                A, B = (tensors[key(module.name)].double().numpy() for key in (key_A, key_B))
                assert A.shape == (rank, module.in_features)
                got = ALPHA / rank * (B @ A)
                assert relative_error(got, truncated(expected, rank)) < 1e-5, (number, kind, module.name)


def hold_round(
    site: Served, spec: RunSpec, people: list[Participant], trainer: StandardTrainer, folder: Path
) -> list[dict[str, Upload]]:
    """One round of everybody's training, aggregated; each participant's update by module, in float64."""
    for person, kind in zip(people, TYPES, strict=True):
        person.declare("test", kind.rank, kind.examples, kind.pattern)
    total, updates = sum(kind.examples for kind in TYPES), []
    for person, kind in zip(people, TYPES, strict=True):
        task = person.task("test")
        start = folder / person.client_id
        served(site, person, kind, task["round"] - 1, start)
        examples = [Prompted(f"{person.client_id} {number}?", f" {number}") for number in range(kind.examples)]
        outcome = trainer.train(make_job(spec, start, examples, folder / f"{person.client_id}-trained"))
        config = json.loads((start / "adapter_config.json").read_text())
        person.upload(
            task,
            outcome.adapter.read_bytes(),
            alpha=ALPHA,
            alpha_pattern=config["alpha_pattern"],
            examples=outcome.examples,
        )
        tensors = {key: tensor.double().numpy() for key, tensor in load_file(outcome.adapter).items()}
        updates.append(
            {
                module.name: Upload(
                    tensors[key_A(module.name)],
                    tensors[key_B(module.name)],
                    ALPHA / len(tensors[key_A(module.name)]),
                    kind.examples / total,
                )
                for module in spec.modules
            }
        )
    assert site.work() == 1
    return updates


def served(site: Served, person: Participant, kind: ResourceType, number: int, folder: Path) -> dict[str, torch.Tensor]:
    """A participant's slice of a round, with its configuration in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    query = {"rank": kind.rank, "pattern": json.dumps(kind.pattern)}
    path = f"/v1/runs/test/rounds/{number}"
    (folder / "adapter_model.safetensors").write_bytes(person.call("GET", f"{path}/adapter", params=query).content)
    (folder / "adapter_config.json").write_bytes(person.call("GET", f"{path}/adapter-config", params=query).content)
    return load_file(folder / "adapter_model.safetensors")
