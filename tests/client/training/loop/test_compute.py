"""How a machine computes a round: 16 bits, quantized layers, micro-batches, checkpointing; and what it does when memory ends."""

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.hooks import RemovableHandle

from flexlora_client.errors import DeviceError, DivergedError, OutOfMemory
from flexlora_client.training.contract import DEFAULT_COMPUTE, Compute, Outcome
from flexlora_client.training.data.examples import Example, Labelled, Prompted
from flexlora_client.training.encoding.encoder import Encoder
from flexlora_client.training.evaluation.evaluate import evaluate
from flexlora_client.training.loop.standard import StandardTrainer
from flexlora_client.training.loop.step import Stepper
from flexlora_client.training.models.fresh import fresh_adapter
from flexlora_client.training.models.load_model import LoadedModel, Models
from flexlora_client.training.models.placing import place_slice
from flexlora_client.training.models.slice_files import read_slice
from flexlora_client.training.models.trial_slice import trial_slice
from flexlora_shared.messages.runs import RunSpec, TrainingSpec
from tests.support.tiny_models import load_base, make_job, make_run, make_slice, make_tokenizer

UNEVEN: list[Example] = [
    Prompted(f"What is {n} plus one?" + " Please." * (n % 4), "It is " * (n % 3 + 1)) for n in range(14)
]
TRAINING = TrainingSpec(learning_rate=0.01, epochs=1, batch_size=4, gradient_accumulation_steps=2, max_length=64)


class Federation:
    """One run of the tiny Llama; every training starts from the same slice and base model files."""

    def __init__(self, base: Path, folder: Path) -> None:
        self.spec: RunSpec = make_run(base, training=TRAINING)
        self.served = make_slice(folder / "served", base, self.spec)
        self.folder = folder
        self.models = Models()

    def train(self, compute: Compute, **fields: Any) -> tuple[Outcome, list[float]]:
        losses: list[float] = []
        job = make_job(
            self.spec, self.served, UNEVEN, self.folder / "out", compute=compute,
            progress=lambda step, total, loss: losses.append(loss), **fields,
        )  # fmt: skip
        return StandardTrainer(self.models).train(job), losses

    def load(self, compute: Compute = DEFAULT_COMPUTE) -> object:
        """The base model, loaded."""
        self.models.with_slice(read_slice(self.served, self.spec), self.spec, "cpu", compute=compute)
        return self.models._base


@pytest.fixture(scope="module")
def run(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return Federation(llama, tmp_path_factory.mktemp("compute"))


@pytest.fixture(scope="module")
def plain(run: Federation) -> tuple[dict[str, torch.Tensor], list[float]]:
    outcome, losses = run.train(Compute())
    assert outcome.compute is None
    return load_file(outcome.adapter), losses


@pytest.mark.parametrize(
    "compute",
    [Compute(micro_batch=3), Compute(gradient_checkpointing=True)],
    ids=["3 examples", "checkpointing"],
)
def test_what_only_saves_memory_learns_the_same(
    run: Federation, plain: tuple[dict[str, torch.Tensor], list[float]], compute: Compute
) -> None:
    outcome, losses = run.train(compute)
    assert losses == pytest.approx(plain[1], abs=2e-6)
    for name, tensor in load_file(outcome.adapter).items():
        torch.testing.assert_close(tensor, plain[0][name], rtol=1e-3, atol=2e-5)
    assert outcome.compute is None


def test_checkpointing_is_off_again_in_the_next_round(run: Federation) -> None:
    run.train(Compute(gradient_checkpointing=True))
    run.train(Compute())
    base: Any = run.models._placed.model.get_base_model()  # type: ignore[union-attr]
    assert not base.is_activation_checkpointing


@pytest.mark.parametrize(
    ("compute", "tolerance"),
    [
        (Compute(dtype="bfloat16"), 0.05),
        (Compute(dtype="float16"), 0.01),
        (Compute(quantization="int8"), 0.03),
        (Compute(quantization="nf4"), 1.0),
        (Compute(quantization="nf4", dtype="bfloat16", optimizer="adamw-8bit", gradient_checkpointing=True), 1.0),
        (Compute(optimizer="adamw-8bit"), 0.01),
    ],
    ids=["bfloat16", "float16", "int8", "nf4", "qlora", "adamw-8bit"],
)
def test_other_precisions_learn_alike(
    run: Federation, plain: tuple[dict[str, torch.Tensor], list[float]], compute: Compute, tolerance: float
) -> None:
    outcome, losses = run.train(compute)
    assert losses == pytest.approx(plain[1], abs=tolerance)
    assert losses[-1] < losses[0]
    trained = load_file(outcome.adapter)
    assert {name: (t.shape, t.dtype) for name, t in trained.items()} == {
        name: (t.shape, t.dtype) for name, t in plain[0].items()
    }
    layer: Any = run.models._base.get_submodule("model.layers.0.mlp.up_proj")  # type: ignore[union-attr]
    nn: Any = importlib.import_module("bitsandbytes.nn")
    kinds = {"none": torch.nn.Linear, "int8": nn.Linear8bitLt, "nf4": nn.Linear4bit}
    assert type(layer.base_layer) is kinds[compute.quantization]
    metrics = evaluate(run.spec, outcome.adapter.parent, UNEVEN[:3], models=run.models, compute=compute, answers=1)
    assert metrics["loss"] < losses[0]


def test_a_classifiers_head_stays_whole_beside_quantized_layers(bert: Path, tmp_path: Path) -> None:
    spec = make_run(bert, "SEQ_CLS")
    examples: list[Example] = [Labelled(f"{word} {n}", n % 3) for n in range(3) for word in ("sings", "swims")]
    served, models = make_slice(tmp_path / "served", bert, spec), Models()
    job = make_job(spec, served, examples, tmp_path / "out", compute=Compute(quantization="nf4"))
    trained = load_file(StandardTrainer(models).train(job).adapter)
    head = "base_model.model.classifier.weight"
    assert trained[head].shape == (3, 32)
    assert not torch.equal(trained[head], load_file(served / "adapter_model.safetensors")[head])


def test_a_step_whose_gradients_overflow_float16_is_repeated(run: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run.train(Compute(dtype="float16"))[1]
    monkeypatch.setattr("flexlora_client.training.loop.step.FIRST_LOSS_SCALE", 2.0**24)
    assert run.train(Compute(dtype="float16"))[1] == pytest.approx(expected, abs=5e-3)


def test_gradients_that_always_overflow_end_training(run: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flexlora_client.training.loop.step.summed_loss", lambda loaded, batch: _overflowing(loaded))
    with pytest.raises(DivergedError, match="overflow float16"):
        run.train(Compute(dtype="float16"))


def _overflowing(loaded: Any) -> torch.Tensor:
    """A loss of 0 with an infinite gradient."""
    weight = next(p for p in loaded.model.parameters() if p.requires_grad)
    loss: torch.Tensor = (weight - weight.detach()).abs().sqrt().sum()
    return loss


@pytest.mark.parametrize(
    ("compute", "sentence"),
    [
        (
            Compute(optimizer="paged-adamw-8bit"),
            "paged optimizers need a CUDA device, this is cpu; use --optimizer adamw",
        ),
        (Compute(offload=True), "cpu has nothing to move"),
    ],
)
def test_what_a_cpu_cannot_do_is_refused(run: Federation, compute: Compute, sentence: str) -> None:
    with pytest.raises(DeviceError, match=sentence):
        run.train(compute)


@pytest.mark.parametrize("compute", [Compute(quantization="int8"), Compute(optimizer="adamw-8bit")])
def test_without_bitsandbytes_the_extra_is_named(
    run: Federation, monkeypatch: pytest.MonkeyPatch, compute: Compute
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else found(name))
    with pytest.raises(DeviceError, match=r"pip install 'flexlora\[agent,quantization\]'"):
        run.train(compute)


@contextmanager
def memory_for(models: Models, fits: Callable[[int, bool], bool], error: type[Exception]) -> Iterator[list[int]]:
    """Let the model's last layer run out of memory unless its examples and checkpointing fit; yields the examples tried."""
    tried: list[int] = []

    def check(layer: Any, args: tuple[torch.Tensor, ...]) -> None:
        tried.append(len(args[0]))
        if torch.is_grad_enabled() and not fits(len(args[0]), layer.gradient_checkpointing):
            raise error("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")

    layer = models._base.get_submodule("model.layers.1")  # type: ignore[union-attr]
    handle: RemovableHandle = layer.register_forward_pre_hook(check)
    try:
        yield tried
    finally:
        handle.remove()


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_out_of_memory_halves_the_micro_batch_and_training_goes_on(
    run: Federation, plain: tuple[dict[str, torch.Tensor], list[float]], error: type[Exception]
) -> None:
    run.load()
    with memory_for(run.models, lambda examples, _: examples <= 1, error) as tried:
        outcome, losses = run.train(Compute())
    assert tried[:3] == [4, 2, 1]
    assert set(tried[3:]) == {1}
    assert losses == pytest.approx(plain[1], abs=2e-6)
    assert outcome.compute == Compute(micro_batch=1)


def test_where_one_example_is_too_much_activations_are_recomputed(
    run: Federation, plain: tuple[dict[str, torch.Tensor], list[float]]
) -> None:
    run.load()
    with memory_for(run.models, lambda _, checkpointing: checkpointing, torch.OutOfMemoryError):
        outcome, losses = run.train(Compute(micro_batch=2))
    assert losses == pytest.approx(plain[1], abs=2e-6)
    assert outcome.compute == Compute(micro_batch=1, gradient_checkpointing=True)


def test_where_nothing_more_can_be_saved_a_sentence_says_so(run: Federation) -> None:
    run.load()
    with (
        memory_for(run.models, lambda *_: False, torch.OutOfMemoryError),
        pytest.raises(OutOfMemory, match="too little memory for one example of up to 64 tokens; declare a lower rank"),
    ):
        run.train(Compute())
    assert run.train(Compute())[0].compute is None  # nothing is left of it


def test_another_error_is_not_taken_for_one_of_memory(run: Federation) -> None:
    run.load()

    class Other(RuntimeError):
        def __init__(self, _: str) -> None:
            super().__init__("mat1 and mat2 shapes cannot be multiplied")

    with memory_for(run.models, lambda *_: False, Other), pytest.raises(Other, match="cannot be multiplied"):
        run.train(Compute())


def test_a_changed_setting_of_loading_loads_the_model_anew(run: Federation) -> None:
    first = run.load()
    assert run.load(Compute(micro_batch=2, gradient_checkpointing=True)) is first
    assert run.load(Compute(dtype="bfloat16")) is not first


def test_layers_that_accelerate_keeps_elsewhere_train_the_same(run: Federation, llama: Path) -> None:
    """As `--offload` places them; here their weights move between main memory and itself."""
    served, encoder = read_slice(run.served, run.spec), Encoder(make_tokenizer(), 64)
    examples, losses = [encoder.encode(example) for example in UNEVEN[:4]], []
    for offload in (False, True):
        base = load_base(llama, run.spec)
        if offload:
            base = importlib.import_module("accelerate").cpu_offload(base, execution_device=torch.device("cpu"))
        placed = place_slice(served, base, run.spec, None)
        settings = Compute(gradient_checkpointing=True)
        loaded = LoadedModel(
            placed.model, run.models.with_slice(served, run.spec, "cpu").tokenizer, torch.device("cpu"), 64, 128, "CAUSAL_LM",
            torch.float32, compute=settings,
        )  # fmt: skip
        placed.model.train()
        stepper = Stepper(loaded, TRAINING)
        losses.append([stepper.step(examples)[0] for _ in range(2)])
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert losses[1][1] < losses[1][0]


def test_the_frozen_slice_of_layers_that_accelerate_keeps_elsewhere_acts_too(run: Federation, llama: Path) -> None:
    trial = trial_slice(run.spec, 4)
    drawn = {key: torch.randn_like(value) if "lora_B" in key else value for key, value in trial.tensors.items()}
    served = replace(trial, tensors=drawn)
    fresh, outputs = fresh_adapter(served, run.spec, 1, "participant", ()), []
    for offload in (False, True):
        base = load_base(llama, run.spec)
        if offload:
            base = importlib.import_module("accelerate").cpu_offload(base, execution_device=torch.device("cpu"))
        placed = place_slice(fresh, base, run.spec, None, served)
        placed = place_slice(fresh, base, run.spec, placed, served)  # the next round finds the model wrapped
        outputs.append(logits(placed.model))
    torch.testing.assert_close(outputs[1], outputs[0])
    assert (outputs[0] - logits(load_base(llama, run.spec))).abs().max() > 1e-3


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    values: torch.Tensor = model.eval()(input_ids=torch.arange(2, 12)[None]).logits
    return values
