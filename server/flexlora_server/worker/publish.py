"""The result of an aggregation, and how it is published in one transaction."""

from dataclasses import dataclass

from flexlora_server.database.queries import adapters, inputs, runs
from flexlora_server.database.schema import Round, RoundModules
from flexlora_server.database.transactions import Tx
from flexlora_server.lifecycle import transitions
from flexlora_server.storage import Blob
from flexlora_server.worker import leases
from flexlora_server.worker.leases import Lease
from flexlora_server.worker.metrics import energy_over_modules, summarize
from flexlora_shared.messages.status import AggregationMetrics, ModuleMetrics


@dataclass(frozen=True)
class AggregationResult:
    """What an aggregation produced: blobs of the global update and of its slices (rank, pattern, blob), and the metrics."""

    adapter: Blob
    slices: tuple[tuple[int, dict[str, int], Blob], ...]
    modules: tuple[ModuleMetrics, ...]
    updates: AggregationMetrics | None
    seconds: float

    @property
    def digests(self) -> list[str]:
        """The digests of its blobs."""
        return [self.adapter.sha256, *(blob.sha256 for _, _, blob in self.slices)]


def publish(tx: Tx, lease: Lease, result: AggregationResult) -> None:
    """Store the result of the leased round, and move the run on.

    Raises:
        LeaseLost: another worker has the round by now.
    """
    run = runs.lock(tx, lease.run)
    leases.renew(tx, lease, 0)  # the fencing token, compared in the transaction that publishes
    round_ = tx.session.get_one(Round, lease.round_id, populate_existing=True)
    adapters.save_published(tx, lease.run, lease.number, result.adapter)
    for rank, pattern, blob in result.slices:
        adapters.save_slice(tx, lease.run, lease.number, rank, pattern, blob)
    energy = [kept.model_dump(mode="json") for kept in energy_over_modules(result.modules)]
    modules = [module.model_dump(mode="json") for module in result.modules]
    updates = None if result.updates is None else result.updates.model_dump(mode="json")
    summary = None
    if result.updates is not None:
        late = sum(item.staleness > 0 for item in inputs.list_counted(tx, round_))
        summary = summarize(result.modules, result.updates, late).model_dump(mode="json")
    tx.session.add(
        RoundModules(round_id=round_.id, energy_kept=energy, modules=modules, updates=updates, summary=summary)
    )
    round_.aggregation_seconds = result.seconds
    transitions.record_publication(tx, run, round_)
