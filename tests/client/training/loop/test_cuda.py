"""On a GPU: QLoRA end to end, peak memory by setting, the rank that fits, off-load. Skipped where there is none."""

from pathlib import Path

import pytest
import torch

from flexlora_client.training.contract import Compute
from flexlora_client.training.data.examples import Example, Prompted
from flexlora_client.training.evaluation.evaluate import evaluate
from flexlora_client.training.fitting.measure import Participant, choose_rank
from flexlora_client.training.fitting.memory import PeakMemory
from flexlora_client.training.loop.standard import StandardTrainer
from flexlora_client.training.models.load_model import Models
from flexlora_shared.messages.runs import TrainingSpec
from tests.support.tiny_models import make_job, make_run, make_slice

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
EXAMPLES: list[Example] = [Prompted(f"What is {n} plus one? ", f"It is {n + 1}.") for n in range(12)]
TRAINING = TrainingSpec(learning_rate=0.01, epochs=4, batch_size=4, max_length=64)
SETTINGS = {
    "float32": Compute(dtype="float32"),
    "bfloat16": Compute(dtype="bfloat16"),
    "float16": Compute(dtype="float16"),
    "int8": Compute(quantization="int8"),
    "qlora": Compute("bfloat16", "nf4", "paged-adamw-8bit", gradient_checkpointing=True, micro_batch=2),
    "offload": Compute(offload=True, gradient_checkpointing=True),
}


@pytest.mark.parametrize("compute", SETTINGS.values(), ids=SETTINGS.keys())
def test_a_setting_trains_and_evaluates(llama: Path, tmp_path: Path, compute: Compute) -> None:
    spec, models, losses = make_run(llama, training=TRAINING), Models(), list[float]()
    served = make_slice(tmp_path / "served", llama, spec)
    job = make_job(
        spec, served, EXAMPLES, tmp_path / "out", device="cuda", compute=compute,
        progress=lambda step, total, loss: losses.append(loss),
    )  # fmt: skip
    with PeakMemory(torch.device("cuda")) as peak:
        outcome = StandardTrainer(models).train(job)
    assert losses[-1] < 0.7 * losses[0]
    metrics = evaluate(spec, tmp_path / "out", EXAMPLES[:4], device="cuda", models=models, compute=compute)
    assert metrics["loss"] < losses[0]
    print(f"peak {peak.bytes / 2**20:.0f} MiB, {outcome.metrics['train_seconds']:.2f} s")


def test_the_rank_is_chosen_by_the_gpus_memory(llama: Path) -> None:
    own = Participant(EXAMPLES[:8], EXAMPLES[8:], 2, "cuda", str(llama), Compute())
    choice = choose_rank(make_run(llama, training=TRAINING), own, Models())
    assert choice.chosen is not None
    assert choice.chosen.rank == 8
    assert choice.bounds.memory < torch.cuda.get_device_properties(0).total_memory


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("name", ["float32", "int8", "qlora"])
def test_two_gpus_learn_what_one_learns(llama: Path, tmp_path: Path, name: str) -> None:
    spec = make_run(llama, training=TRAINING.model_copy(update={"gradient_accumulation_steps": 2}))
    served, models, trained = make_slice(tmp_path / "served", llama, spec), Models(), []
    for device in ("cuda:0", "cuda:0,cuda:1", "cuda:all"):
        losses: list[float] = []
        job = make_job(
            spec, served, EXAMPLES, tmp_path / "out", device=device, compute=SETTINGS[name],
            progress=lambda step, total, loss, losses=losses: losses.append(loss),
        )  # fmt: skip
        StandardTrainer(models).train(job)
        trained.append(losses)
    tolerance = 1e-4 if name == "float32" else 0.05
    assert trained[1] == pytest.approx(trained[0], abs=tolerance)
    assert trained[2] == pytest.approx(trained[0], abs=tolerance)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_with_dropout_repeat(llama: Path, tmp_path: Path) -> None:
    spec = make_run(llama, training=TRAINING.model_copy(update={"lora_dropout": 0.3}))
    served, models = make_slice(tmp_path / "served", llama, spec), Models()
    job = make_job(spec, served, EXAMPLES, tmp_path / "out", device="cuda:0,cuda:1")
    first = StandardTrainer(models).train(job).metrics["train_loss"]
    assert StandardTrainer(models).train(job).metrics["train_loss"] == pytest.approx(first, abs=1e-4)
