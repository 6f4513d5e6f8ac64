"""Training that was stopped or killed goes on from its checkpoint, to the same bytes; the deadline ends it in time."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from flexlora_client.errors import Stopped
from flexlora_client.training.contract import ADAPTER_FILE, Compute, Job, Progress
from flexlora_client.training.data.examples import Chat, Example, Prompted, Turn
from flexlora_client.training.loop import checkpoints, snapshots, training_loop
from flexlora_client.training.loop.standard import StandardTrainer
from flexlora_client.training.models.load_model import Models
from tests.support.tiny_models import make_job, make_run, make_slice

QUESTIONS: list[Example] = [Prompted(f"What is {n} plus one? ", f"It is {n + 1}.") for n in range(12)]
HELDOUT = QUESTIONS[:3]


class Died(BaseException):
    """Stands for the end of the process."""


@pytest.fixture(scope="module")
def models() -> Models:
    return Models()


@pytest.fixture
def job(llama: Path, tmp_path: Path) -> Job:
    """6 steps in 2 epochs, with everything that a checkpoint must bring back."""
    spec = make_run(llama, target=["q_proj", "down_proj"])
    training = {
        "lora_dropout": 0.2,
        "schedule": "cosine",
        "warmup": 0.1,
        "select": "best-epoch",
        "optimizer_state": "keep",
        "epochs": 2,
    }
    spec = spec.model_copy(update={"training": spec.training.model_copy(update=training)})
    served = make_slice(tmp_path / "served", llama, spec)
    folders = {"checkpoints": tmp_path / "checkpoints", "state": tmp_path / "state"}
    return make_job(spec, served, QUESTIONS, tmp_path / "out", heldout=HELDOUT, **folders)


def dies_after(last: int) -> Progress:
    def progress(step: int, total: int, loss: float) -> None:
        if step > last:
            raise Died

    return progress


def undisturbed(job: Job, models: Models, tmp_path: Path) -> bytes:
    alone = replace(job, output=tmp_path / "alone", checkpoints=None, state=None)
    return StandardTrainer(models).train(alone).adapter.read_bytes()


def steps_of(job: Job, trainer: StandardTrainer) -> tuple[list[int], bytes, list[str]]:
    """The steps that training takes, what it writes, and what it says."""
    steps: list[int] = []
    told: list[str] = []
    listening = replace(job, progress=lambda step, total, loss: steps.append(step), notice=told.append)
    return steps, trainer.train(listening).adapter.read_bytes(), told


@pytest.mark.parametrize("last", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_a_killed_training_goes_on_to_the_same_bytes(
    job: Job, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: int
) -> None:
    monkeypatch.setattr(checkpoints, "SHARE", 1e9)  # a checkpoint after every step, whatever it costs
    expected = undisturbed(job, models, tmp_path)
    with pytest.raises(Died):
        StandardTrainer(models, 0.0).train(replace(job, progress=dies_after(last)))
    steps, trained, told = steps_of(job, StandardTrainer(models))
    assert steps == list(range(last + 1, 7))
    assert trained == expected
    assert told == [f"training goes on after step {last} of 6, where a checkpoint was written"]


def test_a_stopped_training_says_where_it_stands_and_goes_on(job: Job, models: Models, tmp_path: Path) -> None:
    expected, asked = undisturbed(job, models, tmp_path), iter([False, False, True])
    with pytest.raises(Stopped, match="stopped after step 3 of 6, a checkpoint is kept"):
        StandardTrainer(models).train(replace(job, stop=lambda: next(asked)))
    assert not job.output.exists()
    steps, trained, _ = steps_of(job, StandardTrainer(models))
    assert steps == list(range(4, 7))
    assert trained == expected


def test_a_stop_asked_for_in_the_last_step_finishes_the_round(job: Job, models: Models, tmp_path: Path) -> None:
    done: list[int] = []
    finished = replace(job, progress=lambda step, *_: done.append(step), stop=lambda: len(done) == 6)
    assert StandardTrainer(models).train(finished).adapter.read_bytes() == undisturbed(job, models, tmp_path)


def test_without_a_folder_nothing_is_kept(job: Job, models: Models, tmp_path: Path) -> None:
    with pytest.raises(Stopped, match="no checkpoint is kept"):
        StandardTrainer(models, 0.0).train(replace(job, stop=lambda: True, checkpoints=None))
    assert not (tmp_path / "checkpoints").exists()


def other_slice(job: Job) -> dict[str, Any]:
    return {"adapter": make_slice(job.output.parent / "other", Path(job.spec.model.id), job.spec, seed=1)}


def other_training(job: Job) -> dict[str, Any]:
    training = job.spec.training.model_copy(update={"learning_rate": 0.02})
    return {"spec": job.spec.model_copy(update={"training": training})}


@pytest.mark.parametrize(
    "changed",
    [
        lambda job: {"round": 2},
        lambda job: {"train": QUESTIONS[1:]},
        lambda job: {"heldout": QUESTIONS[:4]},
        lambda job: {"participant": "somebody else"},
        lambda job: {"compute": Compute(dtype="bfloat16")},
        other_slice,
        other_training,
    ],
)
def test_another_job_has_another_checkpoint(job: Job, changed: Callable[[Job], dict[str, Any]]) -> None:
    assert checkpoints.identify(replace(job, **changed(job))) != checkpoints.identify(job)


def test_where_a_job_writes_does_not_matter(job: Job, tmp_path: Path) -> None:
    elsewhere = replace(job, output=tmp_path / "elsewhere", deadline=1.0, stop=lambda: True, state=None)
    assert checkpoints.identify(elsewhere) == checkpoints.identify(job)


def test_a_checkpoint_counts_for_settings_that_spare_memory(job: Job) -> None:
    sparing = replace(job, compute=Compute(micro_batch=1, gradient_checkpointing=True))
    assert checkpoints.identify(sparing) == checkpoints.identify(job)


def test_a_checkpoint_of_another_job_does_not_count(job: Job, models: Models) -> None:
    with pytest.raises(Stopped):
        StandardTrainer(models).train(replace(job, stop=lambda: True))
    steps, _, _ = steps_of(replace(job, round=2, state=None), StandardTrainer(models))
    assert steps[0] == 1


@pytest.mark.parametrize("damage", [pytest.param(b"", marks=pytest.mark.slow), b"half a checkpoint"])
def test_a_damaged_checkpoint_does_not_count(job: Job, models: Models, damage: bytes) -> None:
    with pytest.raises(Stopped):
        StandardTrainer(models).train(replace(job, stop=lambda: True))
    assert job.checkpoints is not None
    [path] = job.checkpoints.iterdir()
    path.write_bytes(damage)
    assert steps_of(job, StandardTrainer(models))[0][0] == 1


def test_a_full_disk_costs_the_checkpoint_only(
    job: Job, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    told: list[str] = []
    nowhere = replace(job, checkpoints=tmp_path / "file" / "checkpoints", state=None, notice=told.append)
    assert StandardTrainer(models, 0.0).train(nowhere).adapter.read_bytes() == undisturbed(job, models, tmp_path)
    assert len(told) == 1
    assert "no checkpoint could be written" in told[0]


def test_checkpoints_wait_for_their_interval_and_their_cost(
    job: Job, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]

    class Time:
        monotonic = staticmethod(lambda: now[0])

    def writing(*_: object) -> None:
        now[0] += 2.0

    monkeypatch.setattr(checkpoints, "time", Time)
    monkeypatch.setattr(snapshots, "save_whole", writing)
    kept = checkpoints.Checkpoints(job, 30.0)
    now[0] = 29.0
    assert not kept.due()
    now[0] = 30.0
    assert kept.due()
    assert kept.write({})
    now[0] = 32.0 + 39.0
    assert not kept.due(), "writing took 2 s: the next one waits for 40 s"
    now[0] = 32.0 + 40.0
    assert kept.due()


@pytest.mark.parametrize(("left", "steps"), [(-100.0, 1), (3.5, 3), (1000.0, 6)])
def test_the_deadline_ends_training_before_a_step_that_would_cross_it(
    job: Job, models: Models, monkeypatch: pytest.MonkeyPatch, left: float, steps: int
) -> None:
    now = [1000.0]

    class Time:
        time = monotonic = staticmethod(lambda: now[0])

    def progress(step: int, total: int, loss: float) -> None:
        now[0] += 1.0  # each step takes a second, the ones before the last included

    spec = job.spec.model_copy(update={"training": job.spec.training.model_copy(update={"select": "last"})})
    monkeypatch.setattr(training_loop, "time", Time)
    outcome = StandardTrainer(models).train(
        replace(job, spec=spec, progress=progress, deadline=now[0] + left, state=None, checkpoints=None)
    )
    assert outcome.metrics["train_steps"] == steps
    assert outcome.metrics["train_steps_planned"] == 6
    assert outcome.metrics["train_seconds"] == outcome.metrics["train_steps"]


def test_a_number_of_steps_ends_training_as_the_deadline_does(job: Job, models: Models) -> None:
    """The learning rate goes its way all the same: the plan is the whole round's."""
    alone = replace(job, checkpoints=None, state=None)
    short = StandardTrainer(models).train(replace(alone, max_steps=2))
    assert (short.metrics["train_steps"], short.metrics["train_steps_planned"]) == (2, 6)
    by_clock = replace(alone, deadline=time.time() - 1, output=job.output.parent / "by-clock")
    by_steps = replace(alone, max_steps=1)
    first, second = (StandardTrainer(models).train(each).adapter.read_bytes() for each in (by_clock, by_steps))
    assert first == second
    assert StandardTrainer(models).train(replace(alone, max_steps=7)).metrics["train_steps"] == 6


def test_examples_are_those_really_trained_on(job: Job, models: Models) -> None:
    outcome = StandardTrainer(models).train(replace(job, deadline=time.time() - 1, checkpoints=None, state=None))
    assert outcome.examples == 4
    assert outcome.adapter.exists()
    assert torch.isfinite(torch.tensor(outcome.metrics["train_loss"]))


def test_examples_without_anything_to_learn_are_found_on_the_way(
    job: Job, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are left out of their steps; a step of them alone counts, and what goes on from a checkpoint is the same."""
    monkeypatch.setattr(checkpoints, "SHARE", 1e9)
    crowded: list[Example] = [
        Chat((Turn("system", f"{n}" * 200), Turn("user", "a"), Turn("assistant", "b"))) for n in range(9)
    ]
    job = replace(job, train=[*QUESTIONS[:3], *crowded])
    alone = replace(job, output=tmp_path / "alone", checkpoints=None, state=None)
    told: list[tuple[int, int, float]] = []
    expected = StandardTrainer(models).train(replace(alone, progress=lambda *step: told.append(step)))
    assert [(step, total) for step, total, _ in told] == [(step, 6) for step in range(1, 7)]
    empty = [step for step, _, loss in told if not loss]
    assert empty, "the seed makes a step of them alone"
    assert (expected.examples, expected.metrics["train_steps"]) == (3, 6)
    assert expected.metrics["train_predictions"] == 2 * 3 * 8  # epochs, examples, tokens of an answer
    with pytest.raises(Died):
        StandardTrainer(models, 0.0).train(replace(job, progress=dies_after(empty[0])))
    again = StandardTrainer(models).train(job)
    assert again.adapter.read_bytes() == expected.adapter.read_bytes()
    assert (again.examples, again.metrics["train_loss"]) == (3, expected.metrics["train_loss"])


def test_the_room_for_the_update_is_asked_for_when_the_deadline_ended_training(job: Job, models: Models) -> None:
    written: list[bool] = []
    late = replace(job, deadline=time.time() - 1, checkpoints=None, state=None)
    ready = replace(late, before_writing=lambda: written.append((job.output / ADAPTER_FILE).exists()))
    assert StandardTrainer(models).train(ready).metrics["train_steps"] == 1
    assert written == [False]
