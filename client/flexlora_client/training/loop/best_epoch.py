"""Keeps the trained tensors of the epoch with the least held-out loss (`training.select`: "best-epoch")."""

import math
import time
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import islice
from typing import Any

import torch

from flexlora_client.training.encoding.batches import collate, summed_loss
from flexlora_client.training.encoding.encoder import Encoded
from flexlora_client.training.loop.snapshots import copied, put_back
from flexlora_client.training.loop.step import Stepper
from flexlora_client.training.models.load_model import LoadedModel
from flexlora_client.training.models.replicas import deal, set_mode, spread


class BestEpoch:
    """Looks at the held-out loss after each epoch; a round cut short ends with an epoch that is not whole."""

    def __init__(self, loaded: LoadedModel, stepper: Stepper, heldout: Iterable[Encoded]) -> None:
        self._loaded, self._stepper, self._heldout = loaded, stepper, heldout
        self.epoch, self.loss = 0, math.inf  # the best so far
        self.seconds = 0.0  # that the last look took
        self._kept: dict[str, Any] = {}

    def look(self, epoch: int) -> None:
        """Measure the held-out loss; keep the tensors and the optimizer's state where it is the least so far."""
        began = time.monotonic()
        loss = self._heldout_loss()
        if not self._kept or loss < self.loss or math.isnan(self.loss):
            self.epoch, self.loss = epoch, loss
            self._kept = {"tensors": copied(self._stepper.parameters), "stepper": copied(self._stepper.state_dict())}
        self.seconds = time.monotonic() - began

    def restore(self) -> None:
        """Put the best epoch's tensors and optimizer state back."""
        put_back(self._kept["tensors"], self._stepper.parameters)
        self._stepper.load_state_dict(self._kept["stepper"])

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"epoch": self.epoch, "loss": self.loss, "kept": self._kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.epoch, self.loss, self._kept = state["epoch"], state["loss"], state["kept"]

    def _heldout_loss(self) -> float:
        """Mean over all predictions, in nats."""
        spread(self._loaded)
        set_mode(self._loaded, train=False)
        total, weight, rest = 0.0, 0, iter(self._heldout)
        while part := [*islice(rest, self._stepper.micro_batch * len(self._loaded.all_replicas))]:
            total += self._stepper.within_memory(partial(self._summed, part))
            weight += sum(example.weight for example in part)
        set_mode(self._loaded, train=True)
        return total / weight

    def _summed(self, examples: Sequence[Encoded]) -> float:
        """The loss, in parts where memory has ended since they were taken."""
        size = self._stepper.micro_batch
        parts = [examples[start : start + size] for start in range(0, len(examples), size)]
        return sum(deal(self._loaded, parts, _loss))


@torch.no_grad()
def _loss(replica: LoadedModel, part: Sequence[Encoded]) -> float:
    return summed_loss(replica, collate(part, replica)).item()
