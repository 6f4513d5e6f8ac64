"""One optimizer step: forward and backward passes over its micro-batches, clipping, the optimizer.

Everything around the steps (their plan, the learning rate, checkpoints, stopping) is `training_loop`'s.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from flexlora_client.errors import DivergedError, OutOfMemory
from flexlora_client.training.contract import Compute
from flexlora_client.training.encoding.batches import collate, summed_loss
from flexlora_client.training.encoding.encoder import Encoded
from flexlora_client.training.loop.optimizers import make_optimizer
from flexlora_client.training.loop.sparing import more_sparing, set_checkpointing
from flexlora_client.training.models.devices import is_out_of_memory, release_memory
from flexlora_client.training.models.load_model import LoadedModel
from flexlora_client.training.models.replicas import deal, gather, part_size, spread, trainable, zero_grad
from flexlora_shared.messages.runs import TrainingSpec

T = TypeVar("T")
FIRST_LOSS_SCALE = 2.0**12  # of float16: its smallest number / this = 1.5e-11, its largest / this = 16


class Stepper:
    """Computes optimizer steps on the trainable tensors of a loaded model; `compute` is how it does so by now."""

    def __init__(self, loaded: LoadedModel, training: TrainingSpec) -> None:
        self._loaded, self._training = loaded, training
        self.parameters = trainable(loaded)
        self.optimizer = make_optimizer(self.parameters.values(), loaded.compute, training)
        half = loaded.dtype == torch.float16
        self._scaler = torch.amp.GradScaler(loaded.device.type, init_scale=FIRST_LOSS_SCALE, enabled=half)
        self._scaler.scale(torch.zeros((), device=loaded.device))  # it makes its scale where it is first used
        self._use(loaded.compute)

    def step(self, examples: Sequence[Encoded]) -> tuple[float, int]:
        """Do one step; the mean loss over its predictions in nats, and their number.

        The gradient is that of this mean, however the examples are cut into micro-batches. Where the loss is not finite,
        nothing is changed. Where memory ends, the step begins anew with smaller micro-batches, then with gradient checkpointing.

        Raises:
            OutOfMemory: it ends with the most sparing settings too.
            DivergedError: gradients overflow float16.
        """
        weight = sum(example.weight for example in examples)
        loss = self.accumulate(examples, weight)
        while math.isfinite(loss) and not self.update():
            loss = self.accumulate(examples, weight)
        self.optimizer.zero_grad(set_to_none=True)
        return loss, weight

    def accumulate(self, examples: Sequence[Encoded], weight: int) -> float:
        """Add up the gradient of the examples' loss, divided by `weight`; that loss."""
        return self.within_memory(lambda: self._backward(examples, weight))

    def within_memory(self, compute: Callable[[], T]) -> T:
        """What `compute` returns; where memory ends, it begins anew with more sparing settings. Raises: OutOfMemory."""
        while True:
            try:
                return compute()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                sparing = more_sparing(self.compute, self._loaded, self._training.batch_size)
                if sparing is None:
                    raise self._too_large() from error
            zero_grad(self._loaded)
            release_memory(self._loaded.device)  # after the error, which holds the activations
            self._use(sparing)

    @property
    def micro_batch(self) -> int:
        """Sequences computed at a time by now, at the most."""
        return min(self.compute.micro_batch or self._training.batch_size, self._training.batch_size)

    def update(self) -> bool:
        """Clip the gradients and change the trained tensors; False: nothing changed, for a loss scaled too high, now lowered."""
        self._scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), self._training.max_grad_norm)
        try:
            self._scaler.step(self.optimizer)
        except RuntimeError as error:
            raise self._too_large() if is_out_of_memory(error) else error from error
        scale = self._scaler.get_scale()
        self._scaler.update()
        if self._scaler.get_scale() >= scale:
            return True
        if scale < 1:
            raise DivergedError("gradients overflow float16; use --dtype bfloat16, or lower the run's learning rate.")
        self.optimizer.zero_grad(set_to_none=True)
        return False

    def set_learning_rate(self, rate: float) -> None:
        """The learning rate of the steps from now on."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def state_dict(self) -> dict[str, Any]:
        """What beside the trained tensors decides the next steps; for `torch.save`."""
        return {"optimizer": self.optimizer.state_dict(), "scaler": self._scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`. Raises: KeyError, ValueError where it is of another set of tensors."""
        self.optimizer.load_state_dict(state["optimizer"])
        if self._scaler.is_enabled() and state["scaler"]:
            self._scaler.load_state_dict(state["scaler"])

    def _use(self, compute: Compute) -> None:
        self.compute = compute
        for replica in self._loaded.all_replicas:
            set_checkpointing(replica.model, compute.gradient_checkpointing)

    def _backward(self, examples: Sequence[Encoded], weight: int) -> float:
        rows = [sequence for example in examples for sequence in example.sequences]
        size = part_size(len(rows), self.micro_batch, len(self._loaded.all_replicas))
        parts = [rows[start : start + size] for start in range(0, len(rows), size)]

        def backward(replica: LoadedModel, part: Sequence[Encoded]) -> float:
            loss = summed_loss(replica, collate(part, replica)) / weight
            self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            return loss.item()

        spread(self._loaded)
        losses = deal(self._loaded, parts, backward)
        gather(self._loaded)
        return sum(losses)

    def _too_large(self) -> OutOfMemory:
        where = " or ".join(str(replica.device) for replica in self._loaded.all_replicas)
        return OutOfMemory(
            f"{where} has too little memory for one example of up to {self._loaded.max_length} tokens; declare a "
            "lower rank (--rank, --hold-rank), load the base model smaller with --quantization nf4, or ask the operator for a "
            "lower max_length."
        )
