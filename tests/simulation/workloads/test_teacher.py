"""The teacher's problem: it needs rank, its training loop trains what the task says, and it runs on the engine."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.lib.rules.rule import Start
from benchmarks.lib.rules.teacher import learners
from flexlora_client.errors import TrainingError
from flexlora_client.training.contract import ADAPTER_FILE, CONFIG_FILE, Job, Outcome
from flexlora_client.training.data.examples import Plain
from flexlora_client.training.loop.plan import plan_steps
from flexlora_client.training.models.held_slice import split_slice
from flexlora_server.adapter_files.peft_config import adapter_config
from flexlora_shared.layout import key_A, key_B
from flexlora_shared.messages.runs import RunSpec, TrainingSpec
from flexlora_simulation import simulate
from flexlora_simulation.errors import ExperimentError
from flexlora_simulation.experiment import WorkloadOptions, parse
from flexlora_simulation.workloads.registry import open_workload
from flexlora_simulation.workloads.teacher_problem import RANK, networks
from flexlora_simulation.workloads.teacher_training import MODULES, TeacherTrainer, measure
from tests.support.simulated import folder_with_database, here

OPTIONS: dict[str, Any] = {"examples": 64, "participants": 3}
TRAINING = TrainingSpec(batch_size=32, max_steps=4, learning_rate=0.01, max_grad_norm=1e6)
CORPUS = open_workload(WorkloadOptions(name="teacher-student", options=OPTIONS)).corpus()
EXAMPLES = [item.example for item in CORPUS.train if item.group == "group-0001"]
TEST = [item.example for item in CORPUS.test[:500]]


def run_spec(**training: Any) -> RunSpec:
    described = open_workload(WorkloadOptions(name="teacher-student", options=OPTIONS)).base_model()
    return RunSpec.model_validate(
        {
            "name": "x",
            "model": {"id": described.path, "task_type": described.task_type, "labels": described.labels},
            "modules": [module.model_dump() for module in MODULES],
            "ranks": [1, 2, 3, 16],
            "rounds": 1,
            "training": TRAINING.model_copy(update=training).model_dump(),
        }
    )


def slice_in(folder: Path, spec: RunSpec, tensors: dict[str, Tensor], rank: int) -> Path:
    folder.mkdir()
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / ADAPTER_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps(adapter_config(spec, rank, {})))
    return folder


def random_slice(folder: Path, spec: RunSpec, rank: int) -> Path:
    made, generator = dict[str, Tensor](), torch.Generator().manual_seed(rank)
    for module in MODULES:
        made[key_A(module.name)] = 0.1 * torch.randn(rank, module.in_features, generator=generator)
        made[key_B(module.name)] = 0.1 * torch.randn(module.out_features, rank, generator=generator)
    return slice_in(folder, spec, made, rank)


def train(tmp_path: Path, spec: RunSpec, adapter: Path, **job: Any) -> Outcome:
    given = {"train": EXAMPLES, "heldout": (), "device": "cpu", "model_path": None, "participant": "a", "round": 1}
    output = tmp_path / "output"
    return TeacherTrainer().train(
        Job(spec, adapter=adapter, output=output, progress=lambda step, total, loss: None, **{**given, **job})
    )


def test_agreement_with_the_teacher_needs_the_teachers_rank(tmp_path: Path) -> None:
    spec, (base, teacher), agreement = run_spec(), networks(0, "test"), {}
    for rank in (1, 3, RANK):
        tensors = {}
        for module, weight, changed in zip(MODULES, base, teacher, strict=True):
            U, S, V = torch.linalg.svd(changed - weight)
            tensors[key_B(module.name)], tensors[key_A(module.name)] = U[:, :rank] * S[:rank], V[:rank]
        agreement[rank] = measure(spec, slice_in(tmp_path / str(rank), spec, tensors, rank), TEST)["agreement"]
    assert agreement[1] < agreement[3] < 0.8 < agreement[RANK] == 1


def test_the_loop_learns_what_the_benchmarks_learners_do(tmp_path: Path) -> None:
    """Of which each trains a batched copy, in the same batches."""
    spec = run_spec()
    adapter = random_slice(tmp_path / "served", spec, 3)
    outcome = train(tmp_path, spec, adapter)
    given, base = load_file(adapter / ADAPTER_FILE), networks(0, "test")[0]
    starts = [Start(given[key_A(module.name)], given[key_B(module.name)]) for module in MODULES]
    layers = [learners.layer([weight], [start], 3) for weight, start in zip(base, starts, strict=True)]
    order = [index for step in plan_steps([1] * 64, spec.training, 1) for index in step]
    inputs = torch.stack([torch.frombuffer(bytearray(EXAMPLES[n].image), dtype=torch.float32) for n in order])  # type: ignore[union-attr]
    labels = torch.tensor([EXAMPLES[n].label for n in order])  # type: ignore[union-attr]
    expected = learners.train(layers, inputs[None], labels[None], 0.01, ("A", "B"))
    found = load_file(outcome.adapter)
    for module, (A, B) in zip(MODULES, expected, strict=True):
        torch.testing.assert_close(found[key_A(module.name)], A[0], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(found[key_B(module.name)], B[0], rtol=1e-3, atol=1e-4)
    assert (outcome.examples, outcome.metrics["train_steps"]) == (64, 2)  # an epoch has two


@pytest.mark.parametrize("trainable", ["slice", "A", "B", "fresh", "prefix"])
def test_it_begins_at_what_the_participant_holds_and_trains_what_the_task_says(trainable: Any, tmp_path: Path) -> None:
    spec = run_spec(batch_size=64, learning_rate=1e-9 if trainable in ("fresh", "prefix") else 0.01)
    served = adapter = random_slice(tmp_path / "served", spec, 3)
    frozen = None
    if trainable == "prefix":
        adapter, frozen = split_slice(served, spec, 1, {}, 3, tmp_path / "split")
    outcome = train(tmp_path, spec, adapter, trainable=trainable, frozen=frozen)
    assert outcome.metrics["train_loss"] == pytest.approx(measure(spec, served, EXAMPLES)["loss"], rel=1e-5)
    before, after = load_file(adapter / ADAPTER_FILE), load_file(outcome.adapter)
    changed = {key.rpartition("lora_")[2][0] for key in before if not torch.equal(before[key], after[key])}
    assert changed == ({trainable} if trainable in ("A", "B") else {"A", "B"})


@pytest.mark.parametrize("kept", ["keep", "fresh"])
def test_the_optimizer_goes_on_where_the_run_keeps_its_state(kept: Any, tmp_path: Path) -> None:
    spec = run_spec(optimizer_state=kept)
    adapter = random_slice(tmp_path / "served", spec, 3)
    train(tmp_path, spec, adapter, state=tmp_path / "state")
    train(tmp_path, spec, adapter, state=tmp_path / "state", round=2)
    states = sorted((tmp_path / "state").glob("round-*.pt"))
    steps = [float(torch.load(path)["state"]["state"][0]["step"]) for path in states]
    assert steps == ([2, 4] if kept == "keep" else [])


def test_what_the_loop_does_not_heed_is_refused(tmp_path: Path) -> None:
    for field, value in (("lora_dropout", 0.1), ("select", "best-epoch")):
        spec = run_spec(**{field: value})
        with pytest.raises(TrainingError, match=f"run.training.{field}: the teacher's training loop does not heed it"):
            train(tmp_path, spec, tmp_path)
    adapter = random_slice(tmp_path / "served", run_spec(), 1)
    with pytest.raises(TrainingError, match="its own examples"):
        train(tmp_path, run_spec(), adapter, train=[Plain("x")])
    spec = run_spec()
    other = spec.model_copy(update={"model": spec.model.model_copy(update={"id": "llama"})})
    with pytest.raises(TrainingError, match="the base model is 'llama'"):
        train(tmp_path, other, adapter)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"data": "x"}, "leave data and model out"),
        ({"options": {"kind": "poor"}}, "workload.options.kind: input should be 'rich' or 'noisy', not 'poor' "),
        (
            {"options": {"temprature": 1}},
            "workload.options.temprature: there is no such field; did you mean temperature",
        ),
    ],
)
def test_wrong_options_are_told(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ExperimentError, match=sentence):
        open_workload(WorkloadOptions(name="teacher-student", **options))


def test_options_decide_on_the_examples() -> None:
    noisy = open_workload(
        WorkloadOptions(name="teacher-student", options={"kind": "noisy", "participants": 2})
    ).corpus()
    assert len(noisy.train) == 2 * 128
    assert {item.group for item in noisy.train} == {"group-0000", "group-0001"}
    certain = open_workload(WorkloadOptions(name="teacher-student", options={**OPTIONS, "temperature": 1e-6})).corpus()
    assert [item.label for item in certain.train] != [item.label for item in CORPUS.train]
    assert certain.test == CORPUS.test
    other = open_workload(WorkloadOptions(name="teacher-student", options={**OPTIONS, "seed": 1})).corpus()
    assert other.test[0] != CORPUS.test[0]


def test_a_federation_learns_it(tmp_path: Path) -> None:
    experiment = parse(
        {
            "name": "x",
            "workload": {"name": "teacher-student", "options": OPTIONS},
            "partition": {"by": "group", "unseen": 1},
            "resources": [{"rank": 2, "count": 1}, {"rank": 16, "count": 1}],
            "run": {"rounds": 2, "training": TRAINING.model_dump(mode="json")},
            "evaluation": {"on": ["test", "unseen"], "examples": 300, "ranks": "largest", "every": 2},
        }
    )
    results = simulate(experiment, folder_with_database(tmp_path / "run"), executor=here)
    found = results.evaluations.set_index(["on", "metric", "round"]).value
    for on in ("test", "unseen"):
        assert found[on, "loss", 2] < found[on, "loss", 0]
        assert 0 <= found[on, "agreement", 2] <= 1
    assert set(results.participants["rank"]) == {2, 16}
    assert (tmp_path / "run" / "population.parquet").exists()
