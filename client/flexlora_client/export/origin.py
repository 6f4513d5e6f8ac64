"""Where an exported adapter comes from: a published round, or the participant's own training."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flexlora_client.agent.download import download
from flexlora_client.agent.reporter import Reporter
from flexlora_client.agent.results import Results
from flexlora_client.agent.slice_cache import CachedSlice, SliceCache, SliceRequest
from flexlora_client.coordinator_api.calls import Api
from flexlora_client.errors import BadInput
from flexlora_client.training.contract import ADAPTER_FILE, CONFIG_FILE
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.messages.status import EnergyKept, RankCount


@dataclass(frozen=True)
class Origin:
    """What is known of an adapter beside its files."""

    spec: RunSpec
    round: int
    rank: int
    metrics: dict[str, float]
    sha256: str  # of its tensors' file, as it was served or trained
    own: bool = False
    energy: float | None = None  # share of the aggregate's energy that this rank keeps, where the coordinator told it
    by_rank: tuple[RankCount, ...] = ()  # the round's participants


def published(api: Api, request: SliceRequest, number: int, folder: Path) -> Origin:
    """Download the slice that round `number` published into `folder`."""
    with Reporter(request.spec.name).bytes_bar("downloading") as on_progress:
        fetched: CachedSlice = download(api, SliceCache(folder / "slices"), request, on_progress)
    for name in (CONFIG_FILE, ADAPTER_FILE):
        (fetched.folder / name).replace(folder / name)
    shutil.rmtree(folder / "slices")
    summary = api.round(request.spec.name, number).summary
    told = [e for e in summary.evaluations if e.rank == request.rank]
    metrics = {f"{e.metric}{' (evaluators)' if e.role == 'evaluator' else ''}": e.value for e in told}
    shares = {kept.rank: kept.share for kept in summary.energy_kept}
    energy = None if request.rank_pattern else shares.get(request.rank)
    return Origin(
        request.spec, number, request.rank, metrics, fetched.sha256, energy=energy, by_rank=tuple(summary.by_rank)
    )


def trained_here(results: Results, source: Literal["own", "best"], folder: Path) -> Origin:
    """Copy an adapter of the work folder into `folder`. Raises: BadInput, where there is none."""
    spec = results.spec()
    kept, path = results.choose(source)
    for name in (CONFIG_FILE, ADAPTER_FILE):
        shutil.copyfile(path / name, folder / name)
    return Origin(spec, kept.round, kept.rank, dict(kept.metrics), kept.sha256, own=kept.own)


def smallest_rank(energy_kept: Sequence[EnergyKept], share: float) -> int:
    """The smallest of the run's ranks that keeps this share of the aggregate's energy, over all modules (as FLoRIST chooses).

    Raises:
        BadInput: none does, or the round has no spectrum.
    """
    if not energy_kept:
        raise BadInput("this round has no spectrum, nothing was aggregated for it; name a --rank")
    enough = [kept.rank for kept in energy_kept if kept.share >= share]
    if not enough:
        most = max(energy_kept, key=lambda kept: kept.share)
        raise BadInput(
            f"no rank of the run keeps {share:g} of the energy; the most is {most.share:.4f}, at rank {most.rank}: "
            "name that --rank, or a smaller --energy"
        )
    return min(enough)
