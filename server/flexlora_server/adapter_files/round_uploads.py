"""Reads a round's accepted uploads from their files: opened once, memory-mapped, one module at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from flexlora_server.adapter_files.global_adapter_torch import TorchGlobalAdapter
from flexlora_server.adapter_files.inspect_upload import upload_scaling
from flexlora_server.adapter_files.slicing import served_scaling
from flexlora_server.adapter_files.weights import BY_EXAMPLES, Counted, WeightRule, update_weights
from flexlora_server.aggregation.factors import Update
from flexlora_server.aggregation.strategies.registry import strategy
from flexlora_shared.layout import key_A, key_B, key_extra
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.messages.uploads import UploadCreate


@dataclass(frozen=True)
class InputUpdate:
    """An accepted update as one input of a round's aggregation.

    path: its file, named by the SHA-256 of its bytes; only that name until `RoundWork.with_paths` replaces it.
    announced: what its sender announced. staleness: by how many rounds it comes late. base: the stored global update that
    its participant was served from, named like `path`, where that is not the round's previous one. weight: its share in the
    round; uncapped: the larger one that its examples would give it, where the run's cap took some of it.
    """

    path: Path
    announced: UploadCreate
    client_id: str = ""
    staleness: int = 0
    base: Path | None = None
    upload_id: str = ""
    weight: float = 1.0
    uncapped: float | None = None


def with_weights(inputs: Sequence[InputUpdate], rule: WeightRule = BY_EXAMPLES) -> list[InputUpdate]:
    """The inputs with weights by their training examples, late ones less, within the run's rule."""
    counted = [Counted(update.announced.examples, update.staleness, update.client_id) for update in inputs]
    claims = zip(inputs, update_weights(counted, rule), update_weights(counted), strict=True)
    return [
        replace(update, weight=weight, uncapped=claimed if rule.weighting != "equal" and weight < claimed else None)
        for update, weight, claimed in claims
    ]


class RoundUploads:
    """The uploads of a round. Tensors are views of the mapped files: nothing is copied, or read before it is used.

    The mapping outlives the file's descriptor, so thousands of uploads need no more of those.
    """

    def __init__(self, spec: RunSpec, inputs: Sequence[InputUpdate]) -> None:
        self._spec, self.inputs = spec, inputs
        # safetensors' annotations leave out what it returns
        self._files: list[Any] = [safe_open(update.path, framework="pt") for update in inputs]
        self._bases = {update.base: TorchGlobalAdapter(update.base) for update in inputs if update.base is not None}
        # the update of a fresh adapter is not measured against the global update it was trained on
        self._measures_against_base = strategy(spec.strategy).agents_train != "fresh"

    def updates(self, module: str) -> list[Update]:
        """The factors of a module from every upload, in order."""
        return list(self._updates(module))

    def _updates(self, module: str) -> Iterator[Update]:
        bases = {path: adapter.factors(module) for path, adapter in self._bases.items() if self._measures_against_base}
        for update, file in zip(self.inputs, self._files, strict=True):
            A, B = file.get_tensor(key_A(module)), file.get_tensor(key_B(module))
            yield Update(
                A=A,
                B=B,
                scaling=upload_scaling(update.announced, module, len(A)),
                weight=update.weight,
                served_scaling=served_scaling(self._spec, _held_rank(update.announced, A, B)),
                base=None if update.base is None else bases.get(update.base),
            )

    def extra(self, name: str) -> Iterator[Tensor]:
        """A tensor beside LoRA from every upload, in order."""
        for file in self._files:
            yield file.get_tensor(key_extra(name))

    def late_extra(self, name: str) -> dict[int, Tensor]:
        """For late uploads, by their index: the tensor beside LoRA in the older global update that they were served from."""
        bases = {path: adapter.extra(name) for path, adapter in self._bases.items()}
        return {index: bases[update.base] for index, update in enumerate(self.inputs) if update.base is not None}


def _held_rank(announced: UploadCreate, A: Tensor, B: Tensor) -> int:
    """The rank at which the participant was served a module that it trained with these factors."""
    return max(len(A), min(announced.hold_rank or 0, len(B), A.shape[1]))  # as `held_ranks`, capped
