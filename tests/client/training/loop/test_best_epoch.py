"""Which epoch's tensors a round uploads."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from flexlora_client.training.contract import Compute, Job
from flexlora_client.training.data.examples import Example, Prompted
from flexlora_client.training.encoding.batches import Batch, collate
from flexlora_client.training.encoding.encoder import Encoded
from flexlora_client.training.evaluation.evaluate import evaluate
from flexlora_client.training.loop import best_epoch
from flexlora_client.training.loop.best_epoch import BestEpoch
from flexlora_client.training.loop.standard import StandardTrainer
from flexlora_client.training.models.load_model import LoadedModel, Models
from tests.support.tiny_models import make_job, make_run, make_slice

QUESTIONS: list[Example] = [Prompted(f"What is {n} plus one? ", f"It is {n + 1}.") for n in range(8)]
HELDOUT: list[Example] = [Prompted(f"What is {n} plus one? ", f"It is {n + 1}.") for n in range(8, 11)]


@pytest.fixture(scope="module")
def models() -> Models:
    return Models()


def make(llama: Path, tmp_path: Path, **training: Any) -> Job:
    """4 epochs of 2 steps."""
    spec = make_run(llama, target=["q_proj", "down_proj"])
    spec = spec.model_copy(update={"training": spec.training.model_copy(update={"epochs": 4, **training})})
    served = make_slice(tmp_path / "served", llama, spec)
    return make_job(spec, served, QUESTIONS, tmp_path / "out", heldout=HELDOUT)


def after_epochs(job: Job, models: Models, epochs: int) -> bytes:
    training = job.spec.training.model_copy(update={"select": "last", "max_steps": 2 * epochs})
    spec = job.spec.model_copy(update={"training": training})
    return StandardTrainer(models).train(replace(job, spec=spec)).adapter.read_bytes()


def test_the_epoch_of_the_least_heldout_loss_is_taken(
    llama: Path, tmp_path: Path, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, losses = make(llama, tmp_path, select="best-epoch"), iter([3.0, 1.0, 2.0, 1.0])
    monkeypatch.setattr(BestEpoch, "_heldout_loss", lambda self: next(losses))
    outcome = StandardTrainer(models).train(job)
    assert outcome.metrics["selected_epoch"] == 2
    assert outcome.metrics["train_steps"] == 8
    assert outcome.adapter.read_bytes() == after_epochs(job, models, 2)


def test_the_heldout_loss_is_that_of_the_evaluation(
    llama: Path, tmp_path: Path, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, seen, original = make(llama, tmp_path, select="best-epoch", max_steps=3), [], BestEpoch._heldout_loss

    def listening(self: BestEpoch) -> float:
        seen.append(original(self))
        return seen[-1]

    monkeypatch.setattr(BestEpoch, "_heldout_loss", listening)
    outcome = StandardTrainer(models).train(job)
    assert len(seen) == 2, "the second epoch is cut short"
    taken = evaluate(job.spec, outcome.adapter.parent, HELDOUT, models=models, device="cpu", answers=0)["loss"]
    assert min(seen) == pytest.approx(taken, rel=1e-5)
    assert outcome.metrics["selected_epoch"] == 1 + seen.index(min(seen))


def test_a_loss_that_is_no_number_is_never_the_least(
    llama: Path, tmp_path: Path, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, losses = make(llama, tmp_path, select="best-epoch"), iter([math.nan, 2.0, math.nan, 1.0])
    monkeypatch.setattr(BestEpoch, "_heldout_loss", lambda self: next(losses))
    assert StandardTrainer(models).train(job).metrics["selected_epoch"] == 4


def test_looks_keep_to_the_micro_batch_and_halve_it_where_memory_ends(
    llama: Path, tmp_path: Path, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device has room for one sequence without gradients; training has taken two at a time."""
    job, sizes = make(llama, tmp_path, select="best-epoch", epochs=1), list[int]()

    def limited(examples: Sequence[Encoded], loaded: LoadedModel) -> Batch:
        sizes.append(len(examples))
        if len(examples) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return collate(examples, loaded)

    whole = StandardTrainer(models).train(job)
    monkeypatch.setattr(best_epoch, "collate", limited)
    outcome = StandardTrainer(models).train(replace(job, compute=Compute(micro_batch=2), output=tmp_path / "other"))
    assert sizes == [2, 1, 1, 1]
    assert outcome.compute == Compute(micro_batch=1)
    assert outcome.metrics["selected_epoch"] == whole.metrics["selected_epoch"] == 1


def test_without_heldout_examples_the_last_epoch_is_taken_with_a_word(
    llama: Path, tmp_path: Path, models: Models
) -> None:
    job, told = make(llama, tmp_path, select="best-epoch"), list[str]()
    outcome = StandardTrainer(models).train(replace(job, heldout=(), notice=told.append))
    assert "selected_epoch" not in outcome.metrics
    assert "without held-out examples" in told[0]
    assert outcome.adapter.read_bytes() == after_epochs(job, models, 4)
