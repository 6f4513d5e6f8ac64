"""The energy that the coordinator measured of a round, as rows."""

from collections.abc import Iterator

from flexlora_shared.messages.status import RoundDetail
from flexlora_simulation.results.tables import EnergyRow


def energy_rows(detail: RoundDetail) -> Iterator[EnergyRow]:
    """What each rank keeps: of all modules together, then of each; nothing of round 0, which aggregates nothing."""
    number = detail.summary.number
    for kept in detail.summary.energy_kept:
        yield EnergyRow(number, "", kept.rank, kept.share)
    for module in detail.modules:
        for kept in module.energy_kept:
            yield EnergyRow(number, module.name, kept.rank, kept.share)
