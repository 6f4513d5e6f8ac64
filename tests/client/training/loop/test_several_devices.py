"""Training dealt to replicas of the model: here two on the CPU; see test_cuda for two GPUs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from flexlora_client.errors import DeviceError, OutOfMemory, Stopped
from flexlora_client.training.contract import Compute, Job, Outcome
from flexlora_client.training.data.examples import Example, Labelled, Prompted
from flexlora_client.training.evaluation.evaluate import evaluate
from flexlora_client.training.fitting.measure import Participant, choose_rank
from flexlora_client.training.fitting.workload import Workload
from flexlora_client.training.loop.standard import StandardTrainer
from flexlora_client.training.models import devices
from flexlora_client.training.models.load_model import Models
from flexlora_client.training.models.replicas import part_size
from flexlora_shared.messages.runs import TrainingSpec
from tests.support.tiny_models import make_job, make_run, make_slice

UNEVEN: list[Example] = [Prompted(f"What is {n}?" + " Please." * (n % 4), "It is " * (n % 3 + 1)) for n in range(11)]
TRAINING = TrainingSpec(learning_rate=0.01, epochs=1, batch_size=2, gradient_accumulation_steps=3, max_length=64)
TWO = "cpu,cpu"  # take turns
AT_ONCE = "cpu,cpu:0"  # PyTorch takes them for different devices: each has a thread


@pytest.fixture(scope="module")
def models() -> Models:
    return Models()


@pytest.fixture
def job(llama: Path, tmp_path: Path) -> Job:
    """2 steps, of 6 and 5 examples."""
    return made(llama, tmp_path)


def made(llama: Path, folder: Path, examples: list[Example] = UNEVEN, **training: Any) -> Job:
    spec = make_run(llama, target=["q_proj", "down_proj"], training=TRAINING.model_copy(update=training))
    return make_job(spec, make_slice(folder / "served", llama, spec), examples, folder / "out")


def trained(job: Job, models: Models, **fields: Any) -> tuple[Outcome, dict[str, torch.Tensor]]:
    outcome = StandardTrainer(models, 0.0).train(replace(job, **fields))
    return outcome, load_file(outcome.adapter)


def assert_alike(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "compute",
    [Compute(), pytest.param(Compute(micro_batch=1, gradient_checkpointing=True), marks=pytest.mark.slow)],
    ids=["default", "sparing"],
)
def test_several_devices_learn_what_one_learns(job: Job, models: Models, compute: Compute) -> None:
    one, alone = trained(job, models, compute=compute)
    several, together = trained(job, models, device=AT_ONCE, compute=compute)
    assert_alike(together, alone)
    assert several.metrics["train_loss"] == pytest.approx(one.metrics["train_loss"], abs=1e-6)
    assert several.examples == one.examples
    assert models._further[0]._base is not models._base
    again = trained(job, models, device=AT_ONCE, compute=compute)[1]
    assert all(torch.equal(again[name], tensor) for name, tensor in together.items())


@pytest.mark.slow
def test_a_third_device_without_anything_to_do_changes_nothing(job: Job, models: Models) -> None:
    few = replace(job, train=UNEVEN[:2])
    assert_alike(trained(few, models, device="cpu,cpu,cpu")[1], trained(few, models)[1])


def test_dropout_and_everything_that_lasts_repeat_to_the_byte(llama: Path, tmp_path: Path, models: Models) -> None:
    """Also where training was stopped between, and went on from its checkpoint."""
    kept: dict[str, Any] = {"lora_dropout": 0.2, "select": "best-epoch", "optimizer_state": "keep", "epochs": 2}
    job = replace(made(llama, tmp_path, **kept), heldout=UNEVEN[:3], device=TWO)
    once, again = (trained(job, models)[0].adapter.read_bytes() for _ in range(2))
    assert once == again
    asked, folders = iter([False, True]), {"checkpoints": tmp_path / "checkpoints", "state": tmp_path / "state"}
    with pytest.raises(Stopped):
        trained(job, models, stop=lambda: next(asked), **folders)
    told: list[str] = []
    outcome, _ = trained(job, models, notice=told.append, **folders)
    assert told == ["training goes on after step 2 of 4, where a checkpoint was written"]
    assert outcome.adapter.read_bytes() == once


@pytest.mark.slow
def test_float16_scales_the_losses_of_all_devices(job: Job, models: Models) -> None:
    half = Compute(dtype="float16")
    assert trained(job, models, device=TWO, compute=half)[0].metrics["train_loss"] == pytest.approx(
        trained(job, models)[0].metrics["train_loss"], abs=0.01
    )


@contextmanager
def memory_of_the_second(models: Models, fits: Callable[[int, bool], bool]) -> Iterator[None]:
    """Let the second device run out of memory unless its examples and checkpointing fit."""

    def check(layer: Any, args: tuple[torch.Tensor, ...]) -> None:
        if torch.is_grad_enabled() and not fits(len(args[0]), layer.gradient_checkpointing):
            raise torch.OutOfMemoryError

    layer = models._further[0]._base.get_submodule("model.layers.1")  # type: ignore[union-attr]
    handle = layer.register_forward_pre_hook(check)
    try:
        yield
    finally:
        handle.remove()


def test_where_one_devices_memory_ends_all_spare(job: Job, models: Models) -> None:
    alone = trained(job, models)[1]
    trained(job, models, device=TWO)
    with memory_of_the_second(models, lambda examples, checkpointing: examples == 1 and checkpointing):
        outcome, together = trained(job, models, device=TWO)
    assert outcome.compute == Compute(micro_batch=1, gradient_checkpointing=True)
    assert_alike(together, alone)
    with (
        memory_of_the_second(models, lambda *_: False),
        pytest.raises(OutOfMemory, match="cpu or cpu has too little memory for one example"),
    ):
        trained(job, models, device=TWO)


def test_an_evaluation_is_dealt_out_too(bert: Path, llama: Path, tmp_path: Path) -> None:
    labelled: list[Example] = [Labelled(f"{word} {n}", n % 3) for n in range(3) for word in ("sings", "swims")]
    for base, task, examples in ((bert, "SEQ_CLS", labelled), (llama, "CAUSAL_LM", UNEVEN)):
        spec, models = make_run(base, task), Models()  # type: ignore[arg-type]
        served = make_slice(tmp_path / task, base, spec)
        one = evaluate(spec, served, examples, device="cpu", models=models, answers=1)
        assert evaluate(spec, served, examples, device=TWO, models=models, answers=1) == pytest.approx(one, abs=1e-6)


def test_the_rank_is_measured_with_all_devices(llama: Path) -> None:
    spec = make_run(llama, target=["q_proj"], training=TRAINING)
    choice = choose_rank(spec, Participant(UNEVEN[:8], UNEVEN[8:], 0, TWO, str(llama), Compute()), Models())
    assert choice.chosen is not None
    assert choice.chosen.rank == 8


def test_each_device_gets_about_as_many_examples() -> None:
    assert part_size(20, 8, 1) == 8
    assert part_size(16, 16, 2) == 8
    assert part_size(20, 8, 2) == 5
    assert part_size(3, 8, 4) == 1
    work = Workload(((9, 3, 7, 2, 5),), batch_size=2, heldout=(4, 4, 4, 4), answers=(), bytes_per_number=4, devices=2)
    assert (work.training(2).count, work.training(2).tokens, work.training(2).largest) == (2, 18 + 5, 18)
    assert work.evaluation(2).count == 1


def test_offload_is_refused_beside_several_devices(job: Job, models: Models) -> None:
    with pytest.raises(DeviceError, match="use --offload, or several devices with --quantization nf4"):
        trained(job, models, device=TWO, compute=Compute(offload=True))


def test_several_devices_are_named_with_commas_or_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceError, match="there is no device 'cuda:7' here"):
        devices.resolve_devices("cuda:7,cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    everything = tuple(torch.device("cuda", index) for index in range(3))
    assert devices.resolve_devices("cuda:all") == everything
    assert devices.resolve_devices("cuda:0, cuda:2") == (everything[0], everything[2])
