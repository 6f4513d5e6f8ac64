"""The cache of downloaded slices, and the request that describes a slice to download.

A slice is a folder named by its SHA-256 that holds PEFT's `adapter_model.safetensors` and `adapter_config.json`; an
incomplete one is named `DIGEST.partial`.
"""

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flexlora_client.coordinator_api.calls import adapter_path
from flexlora_client.errors import Corrupted
from flexlora_client.files import make_folder, sha256_of
from flexlora_client.training.contract import ADAPTER_FILE, CONFIG_FILE
from flexlora_shared.layout import adapter_shapes
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.messages.tasks import Task
from flexlora_shared.ranks import by_pattern, capped_pattern, held_ranks, module_ranks


@dataclass(frozen=True)
class SliceRequest:
    """A slice to download: its path, the tensors it must hold, and its digest and size where the task announces them."""

    path: str
    config_path: str
    spec: RunSpec
    rank: int
    rank_pattern: Mapping[str, int]
    sha256: str | None = None
    size: int | None = None  # bytes

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor the file must hold, by key."""
        modules = self.spec.modules
        return adapter_shapes(modules, self.spec.extra, module_ranks(modules, self.rank, self.rank_pattern))

    @property
    def alpha(self) -> float:
        """`lora_alpha` at this rank."""
        return self.spec.scaling.alpha_of(self.rank)

    @property
    def alpha_pattern(self) -> dict[str, float]:
        """Alphas of the modules that `rank_pattern` names, and of capped ones; empty where one alpha holds for every rank."""
        scaling = self.spec.scaling
        if scaling.alpha is not None:
            return {}
        pattern = capped_pattern(self.spec.modules, self.rank, self.rank_pattern)
        return {key: scaling.alpha_of(rank) for key, rank in pattern.items()}


def request_for_task(task: Task) -> SliceRequest:
    """The slice a task starts from: at the ranks that are held."""
    adapter = task.adapter
    ranks = held_ranks(task.rank, task.rank_pattern, task.hold_rank)
    return SliceRequest(adapter.href, adapter.config_href, task.spec, *ranks, adapter.sha256, adapter.size)


def request_for_round(spec: RunSpec, number: int, rank: int, rank_pattern: Mapping[str, int]) -> SliceRequest:
    """The slice of `rank` that a round published."""
    path, config_path = (adapter_path(spec.name, number, rank, rank_pattern, config=c) for c in (False, True))
    return SliceRequest(path, config_path, spec, rank, rank_pattern)


@dataclass(frozen=True)
class CachedSlice:
    """A complete, checked slice on disk."""

    folder: Path
    sha256: str
    size: int  # bytes of its safetensors file
    fetched: int  # bytes that crossed the network for it just now

    @classmethod
    def at(cls, folder: Path, fetched: int) -> "CachedSlice":
        """The slice in `folder`."""
        return cls(folder, folder.name, (folder / ADAPTER_FILE).stat().st_size, fetched)


class SliceCache:
    """The slices in one folder, by digest."""

    def __init__(self, folder: Path) -> None:
        self.folder = make_folder(folder)

    def find(self, sha256: str) -> Path | None:
        """The folder of a complete slice, its digest checked; None where there is none."""
        folder = self.folder / sha256
        adapter = folder / ADAPTER_FILE
        complete = (folder / CONFIG_FILE).exists() and adapter.exists() and sha256_of(adapter) == sha256
        return folder if complete else None

    def digests(self) -> list[str]:
        """The digests of all complete slices."""
        return sorted(path.name for path in self.folder.iterdir() if self.find(path.name))

    def keep_only(self, sha256: str) -> None:
        """Delete every other slice, complete or partial."""
        for path in self.folder.iterdir():
            if path.name.removesuffix(".partial") != sha256:
                shutil.rmtree(path, ignore_errors=True)


def check_config(config: bytes, request: SliceRequest) -> None:
    """Check an `adapter_config.json` against the run's definition: nothing else would reveal a wrong scaling.

    Raises:
        Corrupted: they differ.
    """
    try:
        fields = json.loads(config)
        ranks = module_ranks(request.spec.modules, request.rank, request.rank_pattern)
        alphas = request.alpha_pattern
        agrees = (
            fields["peft_type"] == "LORA"
            and bool(fields.get("use_rslora", False)) == request.spec.scaling.use_rslora
            and all(
                _agrees(fields, module, rank, by_pattern(module, request.alpha, alphas))
                for module, rank in ranks.items()
            )
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Corrupted(f"the coordinator's adapter_config.json is none of LoRA: {error!r}") from None
    if not agrees:
        raise Corrupted("the coordinator's adapter_config.json does not agree with the run's ranks and scaling")


def _agrees(fields: dict[str, Any], module: str, rank: int, alpha: float) -> bool:
    told = by_pattern(module, fields["lora_alpha"], fields.get("alpha_pattern") or {})
    return by_pattern(module, fields["r"], fields.get("rank_pattern") or {}) == rank and math.isclose(told, alpha)
