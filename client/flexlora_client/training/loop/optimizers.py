"""The optimizers of local training: SGD, and AdamW with its state in 32 or 8 bits, in the device's memory or paged out of it."""

import importlib
from collections.abc import Iterable
from typing import Any

import torch

from flexlora_client.training.contract import Compute
from flexlora_shared.messages.runs import TrainingSpec


def make_optimizer(
    parameters: Iterable[torch.nn.Parameter], compute: Compute, training: TrainingSpec
) -> torch.optim.Optimizer:
    """The run's optimizer, with its learning rate and weight decay. `check_compute` said that it runs here.

    The 8-bit ones quantize the moments in blocks (Dettmers et al. 2022); of tensors below 4096 numbers they keep them in 32 bits.
    """
    rate, decay = training.learning_rate, training.weight_decay
    if training.optimizer == "sgd":  # it has no moments, which 8 bits or paging would make smaller
        return torch.optim.SGD(parameters, lr=rate, weight_decay=decay)
    if compute.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
    optim: Any = importlib.import_module("bitsandbytes.optim")  # an optional package without types

    kind = optim.PagedAdamW8bit if compute.optimizer == "paged-adamw-8bit" else optim.AdamW8bit
    optimizer: torch.optim.Optimizer = kind(parameters, lr=rate, weight_decay=decay)
    return optimizer
