"""Tensors that a participant keeps to itself, by choice: a personal head, or lora_B.

What is kept takes the place of what is served when a round's training begins, and the upload holds the served values in its
place, unchanged: an update must hold all tensors of the slice, and these say "I changed nothing here".

head    the tensors that the run trains in full (as FedPer, arXiv 1912.00818): under every rule they are averaged on their own
B       lora_B, so that only lora_A is shared (FedSA-LoRA, arXiv 2410.01463): under `fedavg` alone. The others combine products
        of A and B, weigh by them, or train B only; with a B that nobody trained their result would mean nothing.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safetensors.torch import load_file, save_file
from torch import Tensor

from flexlora_client.errors import UsageError
from flexlora_client.files import make_folder
from flexlora_client.training.contract import ADAPTER_FILE, CONFIG_FILE
from flexlora_shared.layout import key_B, key_extra
from flexlora_shared.messages.runs import RunSpec

Part = Literal["head", "B"]


@dataclass(frozen=True)
class LocalParts:
    """The keys of the tensors that are kept; none: everything is shared."""

    keys: frozenset[str] = frozenset()

    def start_from(self, served: Path, own: Path | None, target: Path) -> Path:
        """The folder that training starts from: `served`, or `target` with the parts that the own adapter has instead.

        Also `served` where the own parts are of another rank.
        """
        if not self.keys or own is None:
            return served
        tensors, kept = load_file(served / ADAPTER_FILE), load_file(own / ADAPTER_FILE)
        if any(key not in kept or kept[key].shape != tensors[key].shape for key in self.keys):
            return served
        parts = {key: kept[key].to(tensors[key].dtype) for key in self.keys}
        return _write(tensors | parts, served, target)

    def shared(self, trained: Path, served: Path, target: Path) -> Path:
        """The folder of what is uploaded: `trained`, or `target` with the served values of what is kept."""
        if not self.keys:
            return trained
        before = load_file(served / ADAPTER_FILE)
        return _write(load_file(trained / ADAPTER_FILE) | {key: before[key] for key in self.keys}, served, target)


EVERYTHING_SHARED = LocalParts()


def local_parts(part: Part | None, spec: RunSpec) -> LocalParts:
    """The tensors that `part` names in the run. Raises: UsageError, where they cannot be kept."""
    if part is None:
        return EVERYTHING_SHARED
    if spec.strategy == "flora":
        raise UsageError("--keep-local: participants of a flora run train a new adapter each round, so nothing is kept")
    if part == "B" and spec.strategy != "fedavg":
        raise UsageError(
            f"--keep-local B: only runs of the strategy fedavg average lora_A apart from lora_B; this one is of {spec.strategy}"
        )
    if part == "head" and not spec.extra:
        raise UsageError("--keep-local head: this run trains no tensors beside LoRA, so there is no head to keep")
    if part == "B":
        return LocalParts(frozenset(key_B(module.name) for module in spec.modules))
    return LocalParts(frozenset(key_extra(tensor.name) for tensor in spec.extra))


def _write(tensors: dict[str, Tensor], served: Path, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    make_folder(target)
    shutil.copyfile(served / CONFIG_FILE, target / CONFIG_FILE)
    save_file(tensors, target / ADAPTER_FILE, metadata={"format": "pt"})
    return target
