"""The training loop and the measure of the teacher's problem: the product's slices, plan, schedule and optimizer on a small net.

The base model is a name, `teacher-student/SEED`, from which the frozen weights are drawn again. The rest is read and written as
the agent's own loop does.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from flexlora_client.errors import TrainingError
from flexlora_client.training.contract import Job, Outcome
from flexlora_client.training.data.examples import Example, Pictured
from flexlora_client.training.loop.optimizer_state import restore_optimizer, save_optimizer
from flexlora_client.training.loop.optimizers import make_optimizer
from flexlora_client.training.loop.plan import plan_steps
from flexlora_client.training.loop.schedule import learning_rate
from flexlora_client.training.models.fresh import fresh_adapter
from flexlora_client.training.models.held_slice import read_frozen
from flexlora_client.training.models.slice_files import LoadedSlice, read_slice, write_slice
from flexlora_shared.layout import key_A, key_B
from flexlora_shared.messages.runs import ModuleSpec, RunSpec, TrainingSpec
from flexlora_shared.messages.tasks import Trainable
from flexlora_simulation.workloads.teacher_problem import SHAPES, forward, networks

PREFIX = "teacher-student/"
MODULES = tuple(ModuleSpec(name=f"layer{n}", out_features=d, in_features=k) for n, (d, k) in enumerate(SHAPES))
NOT_HEEDED = ("lora_dropout", "select")  # fields of the run's training


class TeacherTrainer:
    """Trains a slice on the cross-entropy of the labels; on the CPU, the same job gives the same bytes."""

    supports = ("slice", "B", "A", "prefix", "fresh")

    def train(self, job: Job) -> Outcome:
        """Train one round; see `flexlora_client.training.contract.Trainer`."""
        spec, training = job.spec, job.spec.training
        _check(training)
        served = read_slice(job.adapter, spec)
        base, _ = networks(seed_of(spec), "test")
        trained = served
        if job.trainable == "fresh":
            trained = fresh_adapter(served, spec, job.round, job.participant, job.train)
            base = _changed(base, served)
        elif job.frozen is not None:
            base = _changed(base, read_frozen(job.frozen, spec))
        tensors = {key: tensor.float().clone() for key, tensor in trained.tensors.items()}
        names = [key(module.name) for module in spec.modules for key in _keys(job.trainable)]
        parameters = [torch.nn.Parameter(tensors[name]) for name in names]
        tensors |= dict(zip(names, parameters, strict=True))
        optimizer = make_optimizer(parameters, job.compute, training)
        restore_optimizer(optimizer, job)
        inputs, labels = _tensors(job.train)
        steps = plan_steps([1] * len(labels), training, job.round)
        losses = []
        for number, batch in enumerate(steps, 1):
            optimizer.param_groups[0]["lr"] = learning_rate(spec, job.round, number, len(steps))
            optimizer.zero_grad()
            logits = forward(inputs[batch], _changed(base, LoadedSlice(trained.config, tensors)))
            loss = cross_entropy(logits, labels[batch])
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(parameters, training.max_grad_norm)
            optimizer.step()
            losses.append(float(loss.detach()))
            job.progress(number, len(steps), losses[-1])
        save_optimizer(optimizer, job)
        job.before_writing()
        adapter = write_slice(tensors, job.adapter, spec, job.output)
        used = len({index for batch in steps for index in batch})
        return Outcome(adapter, used, {"train_loss": sum(losses) / len(losses), "train_steps": float(len(steps))})


def measure(spec: RunSpec, adapter: Path, examples: Sequence[Example]) -> dict[str, float]:
    """loss: the mean cross-entropy of the labels. agreement: how often the likeliest class is the teacher's, from 0 to 1."""
    base, teacher = networks(seed_of(spec), "test")
    inputs, labels = _tensors(examples)
    logits = forward(inputs, _changed(base, read_slice(adapter, spec)))
    same = logits.argmax(-1) == forward(inputs, teacher).argmax(-1)
    return {"loss": float(cross_entropy(logits, labels)), "agreement": float(same.double().mean())}


def example(inputs: Tensor, label: int) -> Pictured:
    """One example: the inputs (width,), float32, as bytes, and the class drawn for them."""
    return Pictured(inputs.numpy().tobytes(), label)


def seed_of(spec: RunSpec) -> int:
    """The seed in the name of the base model. Raises: TrainingError."""
    name, _, seed = spec.model.id.rpartition("/")
    if f"{name}/" != PREFIX or not seed.isdecimal():
        raise TrainingError(f"the base model is {spec.model.id!r}, but this training loop is for {PREFIX}SEED")
    return int(seed)


def _changed(base: Sequence[Tensor], adapter: LoadedSlice) -> tuple[Tensor, ...]:
    """The weights with the adapter added; of a module that it lacks, as they are."""
    weights = list(base)
    for n, module in enumerate(MODULES):
        if key_A(module.name) in adapter.tensors:
            A, B = (adapter.tensors[key(module.name)].float() for key in (key_A, key_B))
            weights[n] = weights[n] + adapter.config.scaling_of(module.name) * (B @ A)
    return tuple(weights)


def _keys(trainable: Trainable) -> tuple[Callable[[str], str], ...]:
    if trainable == "A":
        return (key_A,)
    return (key_B,) if trainable == "B" else (key_A, key_B)


def _tensors(examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Inputs (n, width) and labels (n,)."""
    own = [one for one in examples if isinstance(one, Pictured)]
    if len(own) < len(examples) or not own:
        raise TrainingError("the teacher's problem is learned from its own examples; there are none, or others")
    inputs = torch.frombuffer(bytearray(b"".join(one.image for one in own)), dtype=torch.float32)
    return inputs.view(len(own), -1), torch.tensor([one.label for one in own])


def _check(training: TrainingSpec) -> None:
    for name in NOT_HEEDED:
        if getattr(training, name) != TrainingSpec.model_fields[name].default:
            raise TrainingError(f"run.training.{name}: the teacher's training loop does not heed it; leave it out")
