"""One optimizer step: forward and backward passes over its batches, clipping, AdamW.

Everything around the steps (their plan, the learning rate, checkpoints, stopping) is `training_loop`'s.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch

from flexlora_client.training.encoding.batches import collate, summed_loss
from flexlora_client.training.encoding.encoder import Encoded
from flexlora_client.training.models.load_model import LoadedModel
from flexlora_shared.messages.runs import TrainingSpec


class Stepper:
    """Computes optimizer steps on the trainable tensors of a loaded model."""

    def __init__(self, loaded: LoadedModel, training: TrainingSpec) -> None:
        self._loaded, self._training = loaded, training
        self.parameters = {name: p for name, p in loaded.model.named_parameters() if p.requires_grad}
        self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=training.learning_rate, weight_decay=training.weight_decay
        )

    def step(self, examples: Sequence[Encoded]) -> tuple[float, int]:
        """Do one step; the mean loss over its predictions in nats, and their number.

        The gradient is that of this mean, however the examples are cut into batches of `batch_size`. Where the loss is not
        finite, nothing is changed.
        """
        weight = sum(example.weight for example in examples)
        loss = self._backward(examples, weight)
        if math.isfinite(loss):
            torch.nn.utils.clip_grad_norm_(self.parameters.values(), self._training.max_grad_norm)
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss, weight

    def set_learning_rate(self, rate: float) -> None:
        """The learning rate of the steps from now on."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def state_dict(self) -> dict[str, Any]:
        """What beside the trained tensors decides the next steps; for `torch.save`."""
        return {"optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`. Raises: KeyError, ValueError where it is of another set of tensors."""
        self.optimizer.load_state_dict(state["optimizer"])

    def _backward(self, examples: Sequence[Encoded], weight: int) -> float:
        loss, size = 0.0, self._training.batch_size
        for start in range(0, len(examples), size):
            part = summed_loss(self._loaded, collate(examples[start : start + size], self._loaded)) / weight
            part.backward()  # type: ignore[no-untyped-call]
            loss += part.item()
        return loss
