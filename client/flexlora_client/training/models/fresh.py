"""Initializes the fresh adapter that a participant trains on top of the served slice."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from flexlora_client.training.data.examples import Example
from flexlora_client.training.data.store import key_of
from flexlora_client.training.models.slice_files import LoadedSlice
from flexlora_shared.layout import key_A, key_B
from flexlora_shared.messages.runs import RunSpec


def fresh_adapter(
    served: LoadedSlice, spec: RunSpec, round: int, participant: str, examples: Sequence[Example]
) -> LoadedSlice:
    """An adapter of the slice's ranks and alphas: lora_A Kaiming-uniform as PEFT draws it, lora_B = 0, extra tensors as served.

    lora_A is seeded by run, round, participant and module: one lora_A for all participants would confine their joint
    update to the span of its few rows. Names may be equal (by default they are the machine's): so the number of examples and
    the first of them count too.
    """
    own = ":".join(map(str, (participant, len(examples), *map(key_of, examples[:1]))))
    tensors = dict(served.tensors)
    for module in spec.modules:
        A = torch.empty(served.config.rank_of(module.name), module.in_features)
        generator = _generator(f"{spec.training.seed}:{round}:{own}:{module.name}")
        torch.nn.init.kaiming_uniform_(A, a=math.sqrt(5), generator=generator)
        tensors[key_A(module.name)] = A
        tensors[key_B(module.name)] = torch.zeros(module.out_features, len(A))
    return replace(served, tensors=tensors)


def _generator(name: str) -> torch.Generator:
    digest = hashlib.sha256(name.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
