"""A slice of which only the first directions are trained: split for that, and put together again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from flexlora_client.errors import AdapterError
from flexlora_client.training.data.examples import Example, Plain
from flexlora_client.training.evaluation.evaluate import evaluate
from flexlora_client.training.loop.standard import StandardTrainer
from flexlora_client.training.models.held_slice import join_slice, read_frozen, split_slice
from flexlora_client.training.models.layers import FROZEN_ADAPTER, TRAINED_ADAPTER, lora_layers
from flexlora_client.training.models.load_model import Models
from flexlora_client.training.models.slice_files import read_config, read_slice
from flexlora_client.training.models.trial_slice import trial_slice, write_trial_slice
from flexlora_shared.layout import key_A, key_B
from flexlora_shared.messages.runs import RunSpec, Scaling, TrainingSpec
from flexlora_shared.ranks import held_ranks, module_ranks
from tests.support.tiny_models import load_base, load_peft, make_job, make_run

IDS = torch.arange(2, 42).reshape(2, 20)
EXAMPLES: list[Example] = [Plain(f"What is {n} plus one? It is {n + 1}.") for n in range(8)]
SCALINGS = [Scaling(alpha=16.0), Scaling(alpha_per_rank=2.0), Scaling(alpha=16.0, use_rslora=True)]
RANKS: list[tuple[int, dict[str, int], int]] = [
    (2, {}, 8),
    (2, {"q_proj": 4}, 4),
    (8, {"up_proj": 2}, 8),
    (4, {"up_proj": 8, "q_proj": 2}, 4),
]
TENSORS = "adapter_model.safetensors"


@pytest.fixture
def held(llama: Path, tmp_path: Path) -> Callable[..., tuple[RunSpec, Path]]:
    """A run, and a slice of it as it is held at these ranks, its B random."""

    def made(
        scaling: Scaling, rank: int, pattern: dict[str, int], hold_rank: int, **fields: Any
    ) -> tuple[RunSpec, Path]:
        spec = make_run(llama, scaling=scaling, **fields)
        trial = trial_slice(spec, *held_ranks(rank, pattern, hold_rank))
        generator = torch.Generator().manual_seed(1)
        tensors = {
            key: 0.05 * torch.randn(tensor.shape, generator=generator) if "lora_B" in key else tensor
            for key, tensor in trial.tensors.items()
        }
        return spec, write_trial_slice(type(trial)(trial.config, tensors), spec, tmp_path / "served")

    return made


@pytest.mark.parametrize(("scaling", "ranks"), list(zip([*SCALINGS, SCALINGS[0]], RANKS, strict=True)), ids=str)
def test_both_parts_keep_the_slices_scaling_and_are_the_slice_again(
    held: Callable[..., tuple[RunSpec, Path]],
    tmp_path: Path,
    scaling: Scaling,
    ranks: tuple[int, dict[str, int], int],
) -> None:
    rank, pattern, hold_rank = ranks
    spec, served = held(scaling, rank, pattern, hold_rank)
    trained, frozen = split_slice(served, spec, rank, pattern, hold_rank, tmp_path / "parts")
    whole, first, rest = read_slice(served, spec), read_slice(trained, spec), read_frozen(frozen, spec)
    for name, own in module_ranks(spec.modules, rank, pattern).items():
        assert first.config.rank_of(name) == own
        assert first.config.scaling_of(name) == pytest.approx(whole.config.scaling_of(name), rel=1e-14)
        assert torch.equal(first.tensors[key_A(name)], whole.tensors[key_A(name)][:own])
        assert torch.equal(first.tensors[key_B(name)], whole.tensors[key_B(name)][:, :own])
        beyond = whole.config.rank_of(name) - own
        assert (name in rest.config.target_modules) == bool(beyond)
        if beyond:
            assert rest.config.rank_of(name) == beyond
            assert rest.config.scaling_of(name) == pytest.approx(whole.config.scaling_of(name), rel=1e-14)
    again = join_slice(trained, frozen, served, tmp_path / "whole")
    assert read_config(again, spec) == whole.config
    after = load_file(again / TENSORS)
    assert after.keys() == whole.tensors.keys()
    assert all(torch.equal(after[key], tensor) for key, tensor in whole.tensors.items())


def test_plain_peft_computes_with_both_parts_what_the_slice_does(
    held: Callable[..., tuple[RunSpec, Path]], tmp_path: Path
) -> None:
    """What a training loop of somebody else's does, by the contract."""
    spec, served = held(SCALINGS[0], 2, {"up_proj": 4}, 4)
    trained, frozen = split_slice(served, spec, 2, {"up_proj": 4}, 4, tmp_path / "parts")
    base = Path(spec.model.id)
    both: Any = PeftModel.from_pretrained(load_base(base, spec), trained, is_trainable=True)
    both.load_adapter(frozen, "rest", is_trainable=False)
    both.base_model.set_adapter(["default", "rest"])
    ours = Models().with_slice(read_slice(trained, spec), spec, "cpu", base_slice=read_frozen(frozen, spec)).model
    with torch.no_grad():
        expected = load_peft(base, spec, served).eval()(input_ids=IDS).logits
        torch.testing.assert_close(both.eval()(input_ids=IDS).logits, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.eval()(input_ids=IDS).logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float32", marks=pytest.mark.slow)])
def test_only_the_first_directions_are_trained(
    held: Callable[..., tuple[RunSpec, Path]], tmp_path: Path, dtype: str
) -> None:
    quick = TrainingSpec(learning_rate=0.01, epochs=2, batch_size=4, max_length=64, lora_dropout=0.0)
    spec, served = held(SCALINGS[0], 2, {"up_proj": 8}, 4, training=quick, upload_dtype=dtype)
    trained, frozen = split_slice(served, spec, 2, {"up_proj": 8}, 4, tmp_path / "parts")
    before, losses, models = (frozen / TENSORS).read_bytes(), list[float](), Models()
    job = make_job(
        spec,
        trained,
        EXAMPLES,
        tmp_path / "out",
        trainable="prefix",
        frozen=frozen,
        progress=lambda n, of, x: losses.append(x),
    )
    out = StandardTrainer(models).train(job).adapter
    sent, start = load_file(out), load_file(trained / TENSORS)
    assert {key: tensor.shape for key, tensor in sent.items()} == {key: tensor.shape for key, tensor in start.items()}
    assert not any(torch.equal(sent[key], start[key]) for key in sent)
    assert losses[-1] < losses[0]
    assert (frozen / TENSORS).read_bytes() == before
    assert models._placed is not None
    for name, layer in lora_layers(models._placed.model):
        assert (FROZEN_ADAPTER in layer.lora_A) == (not name.endswith("up_proj")), "it is trained at all that is held"
        for factors in (layer.lora_A, layer.lora_B):
            weights = {adapter: part.weight for adapter, part in factors.items()}
            assert weights[TRAINED_ADAPTER].requires_grad
            if FROZEN_ADAPTER in weights:
                assert not weights[FROZEN_ADAPTER].requires_grad
                assert weights[FROZEN_ADAPTER].grad is None
    whole = join_slice(out.parent, frozen, served, tmp_path / "whole")
    apart = evaluate(spec, out.parent, EXAMPLES, device="cpu", answers=0, models=models, base_adapter=None)["loss"]
    together = evaluate(spec, whole, EXAMPLES, device="cpu", answers=0, models=models)["loss"]
    assert together < evaluate(spec, served, EXAMPLES, device="cpu", answers=0, models=models)["loss"]
    assert together != pytest.approx(apart), "what is frozen acts"


def test_a_checkpoint_of_another_rest_does_not_count(held: Callable[..., tuple[RunSpec, Path]], tmp_path: Path) -> None:
    from flexlora_client.training.loop.checkpoints import identify

    spec, served = held(SCALINGS[1], 2, {}, 8)
    parts = [split_slice(served, spec, 2, {}, 8, tmp_path / "a"), split_slice(served, spec, 2, {}, 8, tmp_path / "b")]
    jobs = [make_job(spec, t, EXAMPLES, tmp_path / "out", trainable="prefix", frozen=f) for t, f in parts]
    assert identify(jobs[0]) == identify(jobs[1])
    (parts[1][1] / TENSORS).write_bytes((parts[1][0] / TENSORS).read_bytes())
    assert identify(jobs[0]) != identify(jobs[1])


def test_a_rest_without_configuration_is_refused(tmp_path: Path, llama: Path) -> None:
    with pytest.raises(AdapterError, match="is no PEFT configuration"):
        read_frozen(tmp_path, make_run(llama))
