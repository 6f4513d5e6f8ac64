"""A round's accepted uploads as their files: opened once, memory-mapped, read one module at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from flexlora_server.adapters.inspection import upload_scaling
from flexlora_server.adapters.slices import served_scaling
from flexlora_server.aggregation.factors import Update
from flexlora_shared.layout import key_A, key_B, key_extra
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.messages.uploads import UploadCreate
from flexlora_shared.ranks import by_pattern


@dataclass(frozen=True)
class Input:
    """An accepted upload: its file, what was announced of it, its weight in the round, and whose it is."""

    path: Path
    told: UploadCreate
    weight: float
    client_id: str = ""


def weighted(uploads: Sequence[tuple[Path, UploadCreate, str]]) -> list[Input]:
    """Inputs (file, announcement, client) weighted by their training examples, `p_i = n_i / sum n`."""
    total = sum(told.examples for _, told, _ in uploads)
    return [Input(path, told, told.examples / total, client) for path, told, client in uploads]


class Uploads:
    """The tensors are views of the mapped files: nothing is read before it is multiplied, nothing is copied.

    The mapping outlives the file's descriptor, so thousands of uploads need no more of those.
    """

    def __init__(self, spec: RunSpec, inputs: Sequence[Input]) -> None:
        self._spec, self.inputs = spec, inputs
        # safetensors' annotations leave out what it returns
        self._files: list[Any] = [safe_open(given.path, framework="pt") for given in inputs]

    def updates(self, module: str) -> list[Update]:
        """Everybody's factors of a module, in order."""
        return list(self._updates(module))

    def _updates(self, module: str) -> Iterator[Update]:
        for given, file in zip(self.inputs, self._files, strict=True):
            rank = by_pattern(module, given.told.rank, given.told.rank_pattern)
            yield Update(
                A=file.get_tensor(key_A(module)),
                B=file.get_tensor(key_B(module)),
                scaling=upload_scaling(given.told, module),
                weight=given.weight,
                served_scaling=served_scaling(self._spec, rank),
            )

    def extra(self, name: str) -> Iterator[Tensor]:
        """Everybody's tensor beside LoRA, one after the other."""
        for file in self._files:
            yield file.get_tensor(key_extra(name))
