"""A round's accepted uploads as their files: opened once, memory-mapped, read one module at a time."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from flexlora_server.adapter_files.global_adapter_torch import StoredAdapter
from flexlora_server.adapter_files.inspect_upload import upload_scaling
from flexlora_server.adapter_files.slicing import served_scaling
from flexlora_server.aggregation.factors import GlobalFactors, Update
from flexlora_server.aggregation.strategies.registry import strategy
from flexlora_shared.layout import key_A, key_B, key_extra
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.messages.uploads import UploadCreate
from flexlora_shared.ranks import by_pattern


@dataclass(frozen=True)
class InputUpdate:
    """An accepted update as one input of a round's aggregation.

    path: its file, named by the SHA-256 of its bytes; as long as it is not fetched (`RoundWork.with_paths`), that name alone.
    announced: what its sender said of it. staleness: by how many rounds it comes late. base: the stored global update that
    its participant was served from, named like `path`, where that is not the round's previous one. weight: its share in the
    round.
    """

    path: Path
    announced: UploadCreate
    client_id: str = ""
    staleness: int = 0
    base: Path | None = None
    upload_id: str = ""
    weight: float = 1.0


def weighted(inputs: Sequence[InputUpdate]) -> list[InputUpdate]:
    """The inputs with weights by their training examples, late ones less: `p_i` in proportion to `n_i / sqrt(1 + staleness)`.

    The discount is FedAsync's polynomial one with a = 1/2 (Xie et al. 2019, arXiv 1903.03934).
    """
    counted = [update.announced.examples / math.sqrt(1 + update.staleness) for update in inputs]
    total = math.fsum(counted)
    return [replace(update, weight=count / total) for update, count in zip(inputs, counted, strict=True)]


class Uploads:
    """The tensors are views of the mapped files: nothing is read before it is multiplied, nothing is copied.

    The mapping outlives the file's descriptor, so thousands of uploads need no more of those.
    """

    def __init__(self, spec: RunSpec, inputs: Sequence[InputUpdate]) -> None:
        self._spec, self.inputs = spec, inputs
        # safetensors' annotations leave out what it returns
        self._files: list[Any] = [safe_open(given.path, framework="pt") for given in inputs]
        self._bases = {given.base: StoredAdapter(given.base) for given in inputs if given.base is not None}
        # a fresh adapter adds to whatever is published: nothing is measured against what it was trained on top of
        self._measured = strategy(spec.strategy).agents_train != "fresh"

    def updates(self, module: str) -> list[Update]:
        """Everybody's factors of a module, in order."""
        return list(self._updates(module))

    def _updates(self, module: str) -> Iterator[Update]:
        bases = {path: one.factors(module) for path, one in self._bases.items() if self._measured}
        for given, file in zip(self.inputs, self._files, strict=True):
            rank = by_pattern(module, given.announced.rank, given.announced.rank_pattern)
            yield Update(
                A=file.get_tensor(key_A(module)),
                B=file.get_tensor(key_B(module)),
                scaling=upload_scaling(given.announced, module),
                weight=given.weight,
                served_scaling=served_scaling(self._spec, rank),
                base=_of(bases, given),
            )

    def extra(self, name: str) -> Iterator[Tensor]:
        """Everybody's tensor beside LoRA, one after the other."""
        for file in self._files:
            yield file.get_tensor(key_extra(name))

    def late_extra(self, name: str) -> dict[int, Tensor]:
        """Of those served from an older update, by their index: that update's tensor beside LoRA."""
        bases = {path: one.extra(name) for path, one in self._bases.items()}
        return {index: bases[given.base] for index, given in enumerate(self.inputs) if given.base is not None}


def _of(bases: dict[Path, GlobalFactors], given: InputUpdate) -> GlobalFactors | None:
    return None if given.base is None else bases.get(given.base)
