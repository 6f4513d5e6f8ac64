"""The training loop on small real models: what it learns, what it writes, that it is repeatable."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from flexlora_client.errors import DataError, DivergedError
from flexlora_client.training.data.examples import Example, Labelled, Plain, Prompted
from flexlora_client.training.encoding.encoder import Encoder
from flexlora_client.training.loop.standard import StandardTrainer
from flexlora_client.training.models.load_model import Models
from flexlora_client.training.models.slice_files import read_config, read_slice, tensor_shapes
from flexlora_shared.messages.runs import RunSpec, TrainingSpec
from tests.support.tiny_models import (
    load_base,
    load_peft,
    make_job,
    make_run,
    make_slice,
    make_tokenizer,
    scale_tensors,
)

QUESTIONS: list[Example] = [Prompted(f"What is {n} plus one? ", f"It is {n + 1}.") for n in range(12)]
ANIMALS: list[Example] = [
    Labelled(f"{word} number {n}", label) for n in range(5) for label, word in enumerate(["sings", "swims", "grows"])
]


def altered(spec: RunSpec, **training: Any) -> RunSpec:
    return spec.model_copy(update={"training": spec.training.model_copy(update=training)})


@pytest.mark.parametrize("task", ["CAUSAL_LM", "SEQ_CLS"])
def test_training_lowers_the_loss_and_reports_each_step(llama: Path, bert: Path, tmp_path: Path, task: Any) -> None:
    base, examples = (llama, QUESTIONS) if task == "CAUSAL_LM" else (bert, ANIMALS)
    spec = make_run(base, task)
    served = make_slice(tmp_path / "served", base, spec)
    seen: list[tuple[int, int, float]] = []
    job = make_job(spec, served, examples, tmp_path / "out", progress=lambda *step: seen.append(step))
    outcome = StandardTrainer().train(job)
    steps = 18 if task == "CAUSAL_LM" else 24
    assert [(step, total) for step, total, _ in seen] == [(n, steps) for n in range(1, steps + 1)]
    assert seen[-1][2] < 0.7 * seen[0][2]
    assert outcome.examples == len(examples)
    assert outcome.metrics["train_steps"] == steps
    assert seen[-1][2] < outcome.metrics["train_loss"] < seen[0][2]
    assert outcome.adapter == tmp_path / "out" / "adapter_model.safetensors"


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_step_of_sgd_is_as_long_as_the_gradient(llama: Path, tmp_path: Path, optimizer: str) -> None:
    spec = altered(make_run(llama), optimizer=optimizer, learning_rate=0.5, max_grad_norm=1e-3, max_steps=1)
    served = make_slice(tmp_path / "served", llama, spec)
    trained = load_file(StandardTrainer().train(make_job(spec, served, QUESTIONS, tmp_path / "out")).adapter)
    before = load_file(served / "adapter_model.safetensors")
    moved = sum(float((trained[name] - before[name]).double().square().sum()) for name in before) ** 0.5
    assert (moved == pytest.approx(0.5 * 1e-3, rel=1e-3)) is (optimizer == "sgd")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_output_has_the_tensors_of_the_slice_served_in_the_upload_dtype(bert: Path, tmp_path: Path, dtype: Any) -> None:
    spec = make_run(bert, "SEQ_CLS", upload_dtype=dtype)
    served = make_slice(tmp_path / "served", bert, spec, rank_pattern={"layer.1.attention.self.query": 8, "query": 2})
    adapter = StandardTrainer().train(make_job(spec, served, ANIMALS, tmp_path / "out")).adapter
    before, after = load_file(served / "adapter_model.safetensors"), load_file(adapter)
    shapes = tensor_shapes(read_config(served, spec), spec)
    assert shapes["base_model.model.bert.encoder.layer.1.attention.self.query.lora_A.weight"] == (8, 32)
    assert {name: tuple(tensor.shape) for name, tensor in after.items()} == shapes
    assert {tensor.dtype for tensor in after.values()} == {getattr(torch, dtype)}
    assert {"base_model.model.classifier.weight", "base_model.model.classifier.bias"} <= after.keys()
    assert all(not torch.equal(before[name], after[name].float()) for name in shapes)
    assert (adapter.parent / "adapter_config.json").read_bytes() == (served / "adapter_config.json").read_bytes()
    assert sorted(path.name for path in adapter.parent.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


@pytest.mark.parametrize("task", ["CAUSAL_LM", "SEQ_CLS"])
def test_only_the_adapter_and_the_extra_tensors_change(llama: Path, bert: Path, tmp_path: Path, task: Any) -> None:
    base, examples = (llama, QUESTIONS) if task == "CAUSAL_LM" else (bert, ANIMALS)
    spec = make_run(base, task)
    served = make_slice(tmp_path / "served", base, spec)
    models = Models()
    StandardTrainer(models).train(make_job(spec, served, examples, tmp_path / "out"))
    trained = models.with_slice(read_slice(served, spec), spec, "cpu").model.unload().state_dict()
    plain = load_base(base, spec).state_dict()
    assert trained.keys() == plain.keys()
    extra = {tensor.name for tensor in spec.extra}
    assert all(torch.equal(trained[name], plain[name]) for name in plain if name not in extra)


@pytest.mark.parametrize("task", ["CAUSAL_LM", "SEQ_CLS"])
def test_plain_peft_computes_what_the_trainer_computes(llama: Path, bert: Path, tmp_path: Path, task: Any) -> None:
    base, examples = (llama, QUESTIONS) if task == "CAUSAL_LM" else (bert, ANIMALS)
    spec = make_run(base, task)
    key = "layers.0.mlp.up_proj" if task == "CAUSAL_LM" else "layer.0.attention.self.key"
    served = make_slice(tmp_path / "served", base, spec, rank_pattern={key: 8}, alpha_pattern={key: 3}, use_rslora=True)
    models, out = Models(), tmp_path / "out"
    StandardTrainer(models).train(make_job(spec, served, examples, out))
    ours = models.with_slice(read_slice(out, spec), spec, "cpu").model.eval()
    ids = torch.arange(2, 42).reshape(2, 20)
    with torch.no_grad():
        expected = ours(input_ids=ids).logits
        plain = load_peft(base, spec, out)
        torch.testing.assert_close(plain(input_ids=ids).logits, expected, rtol=0, atol=0)
        merged = plain.merge_and_unload()
        torch.testing.assert_close(merged(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-5)


def test_the_same_job_gives_the_same_bytes_and_another_round_other_ones(llama: Path, tmp_path: Path) -> None:
    spec = altered(make_run(llama), lora_dropout=0.2)
    served = make_slice(tmp_path / "served", llama, spec)
    job = make_job(spec, served, QUESTIONS, tmp_path / "first")
    trainer = StandardTrainer()
    first = trainer.train(job).adapter.read_bytes()
    assert trainer.train(replace(job, output=tmp_path / "again")).adapter.read_bytes() == first
    torch.rand(3)  # another state of the global generator
    assert StandardTrainer().train(replace(job, output=tmp_path / "fresh")).adapter.read_bytes() == first
    assert trainer.train(replace(job, round=2, output=tmp_path / "next")).adapter.read_bytes() != first


def test_dropout_of_the_run_is_applied(llama: Path, tmp_path: Path) -> None:
    spec = make_run(llama)
    served = make_slice(tmp_path / "served", llama, spec)
    trainer = StandardTrainer()
    plain = trainer.train(make_job(spec, served, QUESTIONS, tmp_path / "plain")).adapter.read_bytes()
    dropped = altered(spec, lora_dropout=0.5)
    assert trainer.train(make_job(dropped, served, QUESTIONS, tmp_path / "out")).adapter.read_bytes() != plain


def test_training_leaves_the_global_random_state_alone(llama: Path, tmp_path: Path) -> None:
    spec = altered(make_run(llama), lora_dropout=0.2)
    served = make_slice(tmp_path / "served", llama, spec)
    trainer = StandardTrainer()
    job = make_job(spec, served, QUESTIONS, tmp_path / "out")
    trainer.train(job)
    before = torch.get_rng_state()
    trainer.train(job)
    assert torch.equal(torch.get_rng_state(), before)


def test_accumulated_batches_train_as_one_large_batch(llama: Path, tmp_path: Path) -> None:
    spec = make_run(llama)
    served = make_slice(tmp_path / "served", llama, spec)
    large = altered(spec, batch_size=6, epochs=2)
    small = altered(spec, batch_size=2, gradient_accumulation_steps=3, epochs=2)
    results = [
        StandardTrainer().train(make_job(run, served, QUESTIONS[:6], tmp_path / name))
        for run, name in ((large, "large"), (small, "small"))
    ]
    assert results[0].metrics["train_loss"] == pytest.approx(results[1].metrics["train_loss"], rel=1e-5)
    one, other = (load_file(result.adapter) for result in results)
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-3, atol=1e-4)


def test_max_steps_ends_training_and_counts_the_examples_seen(llama: Path, tmp_path: Path) -> None:
    spec = altered(make_run(llama), max_steps=2)
    served = make_slice(tmp_path / "served", llama, spec)
    outcome = StandardTrainer().train(make_job(spec, served, QUESTIONS, tmp_path / "out"))
    assert outcome.examples == 8
    assert outcome.metrics["train_steps"] == 2


def test_train_loss_of_one_step_is_transformers_own(llama: Path, tmp_path: Path) -> None:
    spec = altered(make_run(llama), max_steps=1)
    served = make_slice(tmp_path / "served", llama, spec)
    example = QUESTIONS[0]
    outcome = StandardTrainer().train(make_job(spec, served, [example], tmp_path / "out"))
    encoded = Encoder(make_tokenizer(), 64).encode(example)
    ids, labels = torch.tensor([encoded.ids]), torch.tensor([encoded.targets])
    expected = load_peft(llama, spec, served)(input_ids=ids, labels=labels).loss.item()
    assert outcome.metrics["train_loss"] == pytest.approx(expected, rel=1e-6)


def test_other_ranks_in_the_next_round_train_on_the_same_base_model(llama: Path, tmp_path: Path) -> None:
    spec = make_run(llama)
    trainer = StandardTrainer()
    for rank in (4, 8, 2):
        served = make_slice(tmp_path / f"served{rank}", llama, spec, rank=rank, seed=rank)
        kept = trainer.train(make_job(spec, served, QUESTIONS, tmp_path / "kept")).adapter
        fresh = StandardTrainer().train(make_job(spec, served, QUESTIONS, tmp_path / "fresh")).adapter
        assert kept.read_bytes() == fresh.read_bytes()


def test_a_diverging_run_is_refused_and_writes_nothing(llama: Path, tmp_path: Path) -> None:
    spec = make_run(llama)
    served = make_slice(tmp_path / "served", llama, spec)
    scale_tensors(served, 1e25)
    with pytest.raises(DivergedError, match="lower the learning rate"):
        StandardTrainer().train(make_job(spec, served, QUESTIONS, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_numbers_too_large_for_the_upload_dtype_are_refused(llama: Path, tmp_path: Path) -> None:
    training = TrainingSpec(learning_rate=0.01, max_steps=1, weight_decay=0.5)
    spec = make_run(llama, training=training, upload_dtype="float16")
    served = make_slice(tmp_path / "served", llama, spec, lora_alpha=1e-6)
    scale_tensors(served, 1e7)
    with pytest.raises(DivergedError, match="not finite in float16"):
        StandardTrainer().train(make_job(spec, served, QUESTIONS, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_stopped_training_writes_nothing_and_the_next_one_is_unharmed(llama: Path, tmp_path: Path) -> None:
    spec = make_run(llama)
    served = make_slice(tmp_path / "served", llama, spec)
    trainer = StandardTrainer()

    def stop(step: int, total: int, loss: float) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer.train(make_job(spec, served, QUESTIONS, tmp_path / "out", progress=stop))
    assert not (tmp_path / "out").exists()
    after = trainer.train(make_job(spec, served, QUESTIONS, tmp_path / "out")).adapter.read_bytes()
    assert after == StandardTrainer().train(make_job(spec, served, QUESTIONS, tmp_path / "new")).adapter.read_bytes()


def test_model_path_stands_in_for_the_runs_model(llama: Path, tmp_path: Path) -> None:
    spec = make_run(llama)
    served = make_slice(tmp_path / "served", llama, spec)
    elsewhere = spec.model_copy(update={"model": spec.model.model_copy(update={"id": "some/where"})})
    outcome = StandardTrainer().train(make_job(elsewhere, served, QUESTIONS, tmp_path / "out", model_path=str(llama)))
    with safe_open(outcome.adapter, "pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize(
    ("examples", "message"),
    [([], "no examples"), (ANIMALS, "another task"), ([*QUESTIONS, Labelled("a", 0)], "another task")],
)
def test_examples_that_cannot_be_trained_on(llama: Path, tmp_path: Path, examples: list[Example], message: str) -> None:
    spec = make_run(llama)
    served = make_slice(tmp_path / "served", llama, spec)
    with pytest.raises(DataError, match=message):
        StandardTrainer().train(make_job(spec, served, examples, tmp_path / "out"))


def test_plain_text_trains(llama: Path, tmp_path: Path) -> None:
    spec = altered(make_run(llama), max_steps=3)
    served = make_slice(tmp_path / "served", llama, spec)
    text: list[Example] = [Plain("The bird sings in the tree, the fish swims under it. " * 20)]
    outcome = StandardTrainer().train(make_job(spec, served, text, tmp_path / "out"))
    assert outcome.metrics["train_predictions"] == 3 * 63  # cut at 64 tokens, the first has nothing before it
