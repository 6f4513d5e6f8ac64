"""BANKING77: its files as they are read, and federations with its head trained and frozen."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from flexlora_client.training.data.examples import Labelled
from flexlora_simulation import simulate
from flexlora_simulation.errors import DataError, ExperimentError
from flexlora_simulation.experiment import WorkloadOptions
from flexlora_simulation.workloads.banking77 import Banking77, Question, read_questions
from tests.support.simulated import folder_with_database, here, tiny_experiment
from tests.support.tiny_models import LABELS


@pytest.fixture(scope="module")
def materials(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("materials")
    tiny_experiment(folder)  # writes them
    return folder


def banking77(materials: Path, **options: object) -> Banking77:
    given = WorkloadOptions(
        name="banking77",
        data=str(materials),
        model=str(materials / "bert"),
        options=options,  # type: ignore[arg-type]
    )
    return Banking77(given)


def test_questions_are_read_as_they_stand(tmp_path: Path) -> None:
    path = tmp_path / "test.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["text", "category"], ["Where is it,\nmy card?", "card_arrival"]])
    assert read_questions(path) == [Question("Where is it,\nmy card?", "card_arrival")]


@pytest.mark.parametrize("contents", [None, "question,intent\na,b\n", "text,category\n"])
def test_another_file_is_refused(tmp_path: Path, contents: str | None) -> None:
    if contents is not None:
        (tmp_path / "train.csv").write_text(contents)
    with pytest.raises(DataError, match=r"train\.csv"):
        read_questions(tmp_path / "train.csv")


def test_labels_are_numbered_in_alphabetical_order(materials: Path) -> None:
    corpus = banking77(materials).corpus()
    assert (len(corpus.train), len(corpus.test)) == (60, 12)
    for item in (*corpus.train, *corpus.test):
        assert isinstance(item.example, Labelled)
        assert item.label == sorted(LABELS)[item.example.label]


def test_training_questions_can_be_drawn_and_test_questions_stay(materials: Path) -> None:
    whole, drawn, other = (
        banking77(materials, **given).corpus() for given in ({}, {"examples": 25}, {"examples": 25, "seed": 1})
    )
    assert len(drawn.train) == 25
    assert set(drawn.train) < set(whole.train)
    assert set(drawn.train) != set(other.train)
    assert drawn.test == whole.test


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"heads": 2}, "workload.options.heads: .* banking77 has the options head, head_norm, examples, seed"),
        ({"head": "none"}, "workload.options.head: Input should be 'trained' or 'frozen'"),
        ({"head_norm": 0}, "workload.options.head_norm: .* greater than 0"),
        ({"examples": "all"}, "workload.options.examples: .* integer"),
    ],
)
def test_wrong_options_are_named(materials: Path, options: dict[str, object], sentence: str) -> None:
    with pytest.raises(ExperimentError, match=sentence):
        banking77(materials, **options)


def test_a_frozen_head_is_drawn_alike_and_lies_in_the_model(materials: Path) -> None:
    base = banking77(materials, head="frozen", head_norm=2).base_model()
    head = load_file(Path(base.path) / "model.safetensors")
    weight = head["classifier.weight"].numpy()
    np.testing.assert_allclose(weight @ weight.T, 4 * np.eye(3), atol=4e-3)  # 16 bits of each number
    assert not head["classifier.bias"].any()
    written = Path(base.path).stat().st_mtime_ns
    assert banking77(materials, head="frozen", head_norm=2).base_model() == base
    assert Path(base.path).stat().st_mtime_ns == written
    longer = banking77(materials, head="frozen", head_norm=4).base_model()
    assert torch.equal(
        load_file(Path(longer.path) / "model.safetensors")["classifier.weight"], head["classifier.weight"] * 2
    )
    encoder = load_file(materials / "bert" / "model.safetensors")
    assert all(torch.equal(head[name], encoder[name]) for name in encoder if not name.startswith("classifier."))


def test_a_frozen_head_is_never_trained(materials: Path, tmp_path: Path) -> None:
    options = {"head": "frozen"}
    workload = {"name": "banking77", "data": str(materials), "model": str(materials / "bert"), "options": options}
    experiment = tiny_experiment(
        materials, workload=workload, partition={"by": "label", "participants": 4}, evaluation={"ranks": "largest"}
    )
    results = simulate(experiment, folder_with_database(tmp_path / "run"), executor=here)
    figures = results.evaluations
    loss = figures[figures.metric == "loss"].value.tolist()
    assert len(set(loss)) == 3  # each round moves the encoder
    slices = [load_file(path) for path in (tmp_path / "run" / "slices").rglob("adapter_model.safetensors")]
    assert slices
    assert all("lora_" in key for each in slices for key in each)


def test_a_model_too_narrow_for_the_classes_is_refused(tmp_path: Path, materials: Path) -> None:
    rows = "".join(f"question {n},intent-{n}\n" for n in range(40))  # the model has 32 features
    for part in ("train", "test"):
        (tmp_path / f"{part}.csv").write_text(f"text,category\n{rows}")
    given = WorkloadOptions(
        name="banking77", data=str(tmp_path), model=str(materials / "bert"), options={"head": "frozen"}
    )
    with pytest.raises(DataError, match="32 features have no 40 orthogonal directions"):
        Banking77(given).base_model()


@pytest.mark.slow
def test_figures_of_groups_need_groups(materials: Path, tmp_path: Path) -> None:
    experiment = tiny_experiment(materials, evaluation={"groups": True, "ranks": "largest"})
    with pytest.raises(ExperimentError, match=r"evaluation\.groups: the workload has no groups"):
        simulate(experiment, folder_with_database(tmp_path / "run"), executor=here)
