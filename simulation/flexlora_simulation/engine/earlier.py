"""Brings the last adapter of an experiment that ended to the coordinator of another one, which starts from it.

The other coordinator's folder gets the run, its last published adapter and nothing else: no updates, no participants.
"""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from flexlora_server.database.queries import adapters, rounds, runs
from flexlora_server.database.transactions import Store
from flexlora_server.errors import Refusal
from flexlora_server.lifecycle.start_adapter import with_start
from flexlora_server.settings import Settings
from flexlora_server.storage import Blob, BlobStore, open_blobs
from flexlora_shared.messages.runs import RunSpec, StartFrom
from flexlora_simulation.errors import ExperimentError


def starting_from(earlier: Path, coordinator: Path, spec: RunSpec, clock: Callable[[], float]) -> RunSpec:
    """The run's definition, starting from the last adapter of the experiment in folder `earlier`.

    `coordinator`: the folder of the new run's coordinator, at `clock`; what was brought there before is left as it is.

    Raises:
        ExperimentError: there is no experiment that ended, or its adapter is not one of this run's modules.
    """
    if not (earlier / "coordinator").is_dir():
        raise ExperimentError(f"start_from: {earlier} is no folder of an experiment; run that one first")
    with _opened(earlier / "coordinator", clock) as (store, blobs):
        source, number, blob = _last(store, earlier)
        file = blobs.path(blob.sha256)
        if source.name == spec.name:
            raise ExperimentError(
                f"name: the experiment that it starts from is named {spec.name!r} too; choose another"
            )
        with _opened(coordinator, clock) as (own, own_blobs):
            _bring(own, own_blobs, source, number, blob, file)
            try:
                with own.reading() as tx:
                    wanted = StartFrom(run=source.name, round=number, sha256=blob.sha256)
                    return with_start(tx, spec.model_copy(update={"start_from": wanted}))
            except Refusal as refusal:
                raise ExperimentError(f"start_from: {refusal}") from refusal


@contextmanager
def _opened(folder: Path, clock: Callable[[], float]) -> Iterator[tuple[Store, BlobStore]]:
    settings = Settings(data_dir=folder, blobs_url=None, database_url=None)
    with closing(Store(settings.url, clock)) as store:
        store.migrate()
        yield store, open_blobs(settings)


def _last(store: Store, folder: Path) -> tuple[RunSpec, int, Blob]:
    """The run of an experiment's folder that ended, the number of its last round, and what that published."""
    with store.reading() as tx:
        own = [
            run for run in runs.list_all(tx) if rounds.list_latest(tx, run.name)
        ]  # one that was brought has no rounds
        if not own or own[0].state != "COMPLETED":
            raise ExperimentError(f"start_from: the experiment in {folder} has not ended; run it to its end first")
        spec = runs.spec_of(own[0])
        adapter = adapters.get_published(tx, spec.name, spec.rounds)
        return spec, spec.rounds, Blob(adapter.sha256, adapter.size)


def _bring(store: Store, blobs: BlobStore, spec: RunSpec, number: int, blob: Blob, file: Path) -> None:
    with store.reading() as tx:
        if any(run.name == spec.name for run in runs.list_all(tx)):
            return
    with blobs.writing() as target:
        with file.open("rb") as source:
            while part := source.read(1 << 20):
                target.write(part)
        written = blobs.finish(target)
    with blobs.protect_from_collection([written.sha256]), store.transaction() as tx:
        run = runs.create(tx, spec)
        runs.set_state(tx, run, "COMPLETED", f"brought here from another coordinator, with round {number} alone")
        adapters.save_published(tx, spec.name, number, written)
