"""What a task says is trainable: one factor alone, or a fresh adapter on top of the slice served."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from flexlora_client.training.data.examples import Example, Labelled, Prompted
from flexlora_client.training.evaluation.evaluate import evaluate
from flexlora_client.training.loop.standard import StandardTrainer
from flexlora_client.training.models.fresh import fresh_adapter
from flexlora_client.training.models.layers import FROZEN_ADAPTER, lora_layers
from flexlora_client.training.models.load_model import Models
from flexlora_client.training.models.slice_files import read_slice
from flexlora_shared.messages.runs import RunSpec, TrainingSpec
from tests.support.tiny_models import load_base, load_peft, make_job, make_run, make_slice

QUESTIONS: list[Example] = [Prompted(f"What is {n} plus one? ", f"It is {n + 1}.") for n in range(8)]
ANIMALS: list[Example] = [
    Labelled(f"{word} number {n}", label) for n in range(4) for label, word in enumerate(["sings", "swims", "grows"])
]
IDS = torch.arange(2, 42).reshape(2, 20)
Case = tuple[RunSpec, Path, list[Example]]
Make = Callable[..., Case]


@pytest.fixture(params=["CAUSAL_LM", "SEQ_CLS"])
def make(request: pytest.FixtureRequest, llama: Path, bert: Path, tmp_path: Path) -> Make:
    """A run of either task, a slice of it with ranks and alphas of its own for some modules, and examples."""
    base, examples, module = (llama, QUESTIONS, "q_proj") if request.param == "CAUSAL_LM" else (bert, ANIMALS, "query")

    def made(dtype: str = "float32", **training: Any) -> Case:
        quick = TrainingSpec(**{"learning_rate": 0.01, "epochs": 4, "batch_size": 4, "max_length": 64} | training)
        spec = make_run(base, request.param, training=quick, upload_dtype=dtype)
        served = make_slice(
            tmp_path / "served", base, spec, use_rslora=True, rank_pattern={module: 8}, alpha_pattern={module: 3}
        )
        return spec, served, examples

    return made


def tensors(adapter: Path) -> dict[str, torch.Tensor]:
    return load_file(adapter / "adapter_model.safetensors" if adapter.is_dir() else adapter)


def all_but(named: Mapping[str, torch.Tensor], factor: str) -> set[str]:
    return {key for key in named if f"lora_{factor}" not in key}


@pytest.mark.parametrize(
    ("trainable", "frozen", "dtype"),
    [*(("B", "A", dtype) for dtype in ("float32", "float16", "bfloat16")), ("A", "B", "bfloat16")],
)
def test_one_factor_is_trained_and_the_other_goes_back_bit_for_bit(
    make: Make, tmp_path: Path, trainable: str, frozen: str, dtype: str
) -> None:
    spec, served, examples = make(dtype, weight_decay=0.5)
    losses: list[float] = []
    out = tmp_path / "out"
    job = make_job(spec, served, examples, out, trainable=trainable, progress=lambda n, of, x: losses.append(x))
    after = tensors(StandardTrainer().train(job).adapter)
    before = {key: tensor.to(getattr(torch, dtype)) for key, tensor in tensors(served).items()}
    changed = {key for key in after if not torch.equal(before[key], after[key])}
    assert changed == all_but(after, frozen)  # the head among them
    assert losses[-1] < losses[0]


def test_a_slice_is_trained_whole_again_after_one_factor_alone_or_a_fresh_one(make: Make, tmp_path: Path) -> None:
    spec, served, examples = make(epochs=1)
    job = make_job(spec, served, examples, tmp_path / "slice")
    alone = StandardTrainer().train(job).adapter.read_bytes()
    models = Models()
    trainer = StandardTrainer(models)
    for trainable in ("B", "A", "fresh"):
        trainer.train(replace(job, trainable=trainable, output=tmp_path / trainable))
        assert trainer.train(replace(job, output=tmp_path / "again")).adapter.read_bytes() == alone
        trainer.train(replace(job, trainable=trainable, output=tmp_path / trainable))
        plain = evaluate(spec, served, examples, device="cpu", answers=0)
        assert evaluate(spec, served, examples, device="cpu", models=models, answers=0) == plain


def test_a_fresh_adapter_starts_from_what_the_slice_computes(make: Make, tmp_path: Path) -> None:
    """The first step's loss is the served slice's, whatever the dropout: B = 0, and the slice has none."""
    spec, served, examples = make(max_steps=1, batch_size=len(ANIMALS), lora_dropout=0.9)
    losses: list[float] = []
    job = make_job(
        spec, served, examples, tmp_path / "out", trainable="fresh", progress=lambda n, of, x: losses.append(x)
    )
    StandardTrainer().train(job)
    expected = evaluate(spec, served, examples, device="cpu", answers=0)["loss"]
    assert losses == [pytest.approx(expected, rel=1e-6)]


def test_only_the_fresh_adapter_and_the_extra_tensors_are_uploaded(make: Make, tmp_path: Path) -> None:
    """With next to no learning rate the upload is what training started from."""
    spec, served, examples = make(learning_rate=1e-12, max_steps=1)
    job = make_job(spec, served, examples, tmp_path / "out", trainable="fresh", participant="me")
    sent, slice_ = tensors(StandardTrainer().train(job).adapter), tensors(served)
    start = fresh_adapter(read_slice(served, spec), spec, 1, "me", examples).tensors
    assert sent.keys() == slice_.keys()
    for key, tensor in sent.items():
        torch.testing.assert_close(tensor, start[key], rtol=1e-6, atol=1e-9)
        if "lora_B" in key:
            assert bool(slice_[key].any())
            assert tensor.norm() < 1e-9
        elif "lora_A" in key:
            assert not torch.allclose(tensor, slice_[key])
            bound = tensor.shape[1] ** -0.5
            assert 0.9 * bound < tensor.abs().max() <= bound  # as PEFT draws it
        else:
            torch.testing.assert_close(tensor, slice_[key], rtol=1e-6, atol=1e-9)


def test_base_and_slice_and_fresh_adapter_are_what_is_trained(make: Make, tmp_path: Path) -> None:
    """Plain PEFT, with the slice merged into the base model and the fresh adapter on top, computes the same."""
    spec, served, examples = make()
    models, losses, out = Models(), list[float](), tmp_path / "out"
    job = make_job(spec, served, examples, out, trainable="fresh", progress=lambda n, of, x: losses.append(x))
    StandardTrainer(models).train(job)
    below, top = read_slice(served, spec), read_slice(out, spec)
    ours = models.with_slice(top, spec, "cpu", base_slice=below).model.eval()
    merged = load_peft(Path(spec.model.id), spec, served).merge_and_unload()
    plain = PeftModel.from_pretrained(merged, out).eval()
    with torch.no_grad():
        expected = plain(input_ids=IDS).logits
        torch.testing.assert_close(ours(input_ids=IDS).logits, expected, rtol=1e-4, atol=1e-5)
    together = evaluate(spec, out, examples, device="cpu", models=models, answers=0, base_adapter=served)
    assert together["loss"] < losses[0]
    assert together["loss"] != pytest.approx(evaluate(spec, out, examples, device="cpu", answers=0)["loss"], rel=1e-3)


def test_the_slice_and_the_base_model_stay_frozen(make: Make, tmp_path: Path) -> None:
    spec, served, examples = make()
    models = Models()
    StandardTrainer(models).train(make_job(spec, served, examples, tmp_path / "out", trainable="fresh"))
    assert models._placed is not None
    model, slice_ = models._placed.model, tensors(served)
    for name, layer in lora_layers(model):
        for factor, found in (("lora_A", layer.lora_A[FROZEN_ADAPTER]), ("lora_B", layer.lora_B[FROZEN_ADAPTER])):
            assert torch.equal(found.weight, slice_[f"base_model.model.{name}.{factor}.weight"])  # type: ignore[arg-type]
    base, extra = load_base(Path(spec.model.id), spec).state_dict(), {tensor.name for tensor in spec.extra}
    trained = model.unload().state_dict()
    assert all(torch.equal(trained[name], base[name]) for name in base if name not in extra)


@pytest.mark.parametrize("trainable", ["B", "fresh"])
def test_the_same_job_gives_the_same_bytes(make: Make, tmp_path: Path, trainable: str) -> None:
    spec, served, examples = make(lora_dropout=0.2, epochs=1)
    job = make_job(spec, served, examples, tmp_path / "first", trainable=trainable, participant="me")
    trainer = StandardTrainer()
    first = trainer.train(job).adapter.read_bytes()
    before = torch.get_rng_state()
    assert trainer.train(replace(job, output=tmp_path / "again")).adapter.read_bytes() == first
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)  # another state of the global generator
    assert StandardTrainer().train(replace(job, output=tmp_path / "anew")).adapter.read_bytes() == first


def test_every_round_participant_and_module_starts_from_a_lora_A_of_its_own(make: Make) -> None:
    """So do two that enrolled under one name: a machine's own is the default, and may be that of another machine too."""
    spec, served, examples = make()
    part = read_slice(served, spec)
    drawn = ((1, "me", examples), (2, "me", examples), (1, "you", examples), (1, "me", examples[1:]))
    starts = [fresh_adapter(part, spec, *one).tensors for one in drawn]
    rows = [tensor[0] for start in starts for key, tensor in start.items() if "lora_A" in key]
    assert len({tuple(row.tolist()) for row in rows}) == len(rows) == 4 * len(spec.modules)
