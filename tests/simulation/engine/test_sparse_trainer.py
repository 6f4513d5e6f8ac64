"""A few numbers of each adapted matrix are trained in full, the same for everybody; the others stay as they are."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flexlora_client.errors import BadInput
from flexlora_client.training.data.examples import Labelled
from flexlora_client.training.models.load_model import Models
from flexlora_shared.layout import key_A, key_B
from flexlora_shared.messages.runs import RunSpec
from flexlora_simulation.engine.sparse_trainer import SparseTrainer
from tests.support.tiny_models import make_bert, make_job, make_run, make_slice

EXAMPLES = [Labelled(text, label) for label, text in enumerate(["it sings", "it swims", "it grows"])]
LAYERS = ("encoder.layer.0.attention.self.query", "encoder.layer.0.intermediate.dense", "encoder.layer.0.output.dense")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bert(tmp_path_factory.mktemp("bert"))


def products(folder: Path, spec: RunSpec) -> dict[str, torch.Tensor]:
    """B A of every module; the slices here have scaling 4."""
    tensors = load_file(folder / "adapter_model.safetensors")
    return {m.name: 4 * tensors[key_B(m.name)].double() @ tensors[key_A(m.name)].double() for m in spec.modules}


def trained(spec: RunSpec, served: Path, output: Path, text: str) -> dict[str, torch.Tensor]:
    examples = [Labelled(f"{text} {each.text}", each.label) for each in EXAMPLES]
    outcome = SparseTrainer(Models(), 0.1).train(make_job(spec, served, examples, output))
    return products(outcome.adapter.parent, spec)


def test_a_tenth_of_each_matrix_is_trained_and_nothing_else(bert: Path, tmp_path: Path) -> None:
    """Matrices that are square, higher than wide, and wider than high; a slice that holds a change already."""
    spec = make_run(bert, "SEQ_CLS", LAYERS)
    served = make_slice(tmp_path / "served", bert, spec, 32)
    before = products(served, spec)
    first, second = (trained(spec, served, tmp_path / name, name) for name in ("ada", "bob"))
    for name, W in before.items():
        moved = [(after[name] - W).abs() > 1e-5 for after in (first, second)]
        assert 0.05 < moved[0].double().mean() < 0.15, name
        assert torch.equal(*moved), "the same numbers for everybody"
        assert not torch.equal(first[name], second[name])


def test_what_it_cannot_train(bert: Path, tmp_path: Path) -> None:
    spec = make_run(bert, "SEQ_CLS", LAYERS[:1])
    small = make_slice(tmp_path / "served", bert, spec, 8)
    with pytest.raises(BadInput, match="has rank 8; sparse training needs its whole rank, 32"):
        trained(spec, small, tmp_path / "out", "")
    decaying = spec.model_copy(update={"training": spec.training.model_copy(update={"weight_decay": 0.1})})
    with pytest.raises(BadInput, match="sparse training needs 0"):
        trained(decaying, small, tmp_path / "out", "")
