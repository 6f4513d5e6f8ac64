"""Replicas of one model, a device each: deals batches to them, and sums their gradients (data parallel).

One process, a thread for each device: PyTorch leaves Python's lock while a device computes. The first is the model itself;
it alone has an optimizer, and is what is evaluated, saved and uploaded.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch

from flexlora_client.training.models.load_model import LoadedModel

P = TypeVar("P")
T = TypeVar("T")


def deal(loaded: LoadedModel, parts: Sequence[P], work: Callable[[LoadedModel, P], T]) -> list[T]:
    """What `work` returns for each part, in their order: replica i of n takes the parts i, i + n, i + 2 n and so on.

    Returns, or raises what the first replica that failed raised, once no replica is at work any more. Gradients are recorded
    unless `work` switches that off.
    """
    replicas = loaded.all_replicas
    if len(replicas) == 1:
        return [work(loaded, part) for part in parts]

    def share(index: int) -> list[T]:
        with _current(replicas[index].device):
            return [work(replicas[index], part) for part in parts[index :: len(replicas)]]

    # one thread a device: replicas on one device draw their dropout from one generator, so they take turns
    with ThreadPoolExecutor(len({replica.device for replica in replicas})) as threads:
        shares = [threads.submit(share, index) for index in range(len(replicas))]
    results = [iter(done.result()) for done in shares]
    return [next(results[index % len(replicas)]) for index in range(len(parts))]


def part_size(count: int, most: int, replicas: int) -> int:
    """Rows of a micro-batch, where a step has `count` and `most` are computed at once: every replica gets about as many rows."""
    if replicas == 1:
        return most
    turns = -(-count // (most * replicas))
    return -(-count // (turns * replicas))


def trainable(loaded: LoadedModel) -> dict[str, torch.nn.Parameter]:
    """The trained tensors of a replica by name."""
    return {name: parameter for name, parameter in loaded.model.named_parameters() if parameter.requires_grad}


def spread(loaded: LoadedModel) -> None:
    """Give the other replicas the values of the first one's trained tensors."""
    with torch.no_grad():
        for parameter, first in _others(loaded):
            parameter.copy_(first)


def gather(loaded: LoadedModel) -> None:
    """Add the other replicas' gradients to the first one's, in their order, and drop them."""
    for parameter, first in _others(loaded):
        if parameter.grad is not None:
            gradient = parameter.grad.to(first.device)
            first.grad = gradient if first.grad is None else first.grad.add_(gradient)
            parameter.grad = None


def zero_grad(loaded: LoadedModel) -> None:
    """Drop the gradients of all replicas."""
    for replica in loaded.all_replicas:
        replica.model.zero_grad(set_to_none=True)


def set_mode(loaded: LoadedModel, *, train: bool) -> None:
    """Let all replicas drop out (`train`) or not."""
    for replica in loaded.all_replicas:
        replica.model.train(train)


def _others(loaded: LoadedModel) -> Iterator[tuple[torch.nn.Parameter, torch.nn.Parameter]]:
    """Every trained tensor of the other replicas, beside the first one's of the same name."""
    first = trainable(loaded) if loaded.replicas else {}
    for replica in loaded.replicas:
        for name, parameter in trainable(replica).items():
            yield parameter, first[name]


def _current(device: torch.device) -> AbstractContextManager[object]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
