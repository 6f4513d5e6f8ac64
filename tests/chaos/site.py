"""What a process reuses for every history: a database, a folder, the machine and its clock."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fastapi import FastAPI
from sqlalchemy import URL

from flexlora_server.database.transactions import Store
from flexlora_server.settings import Settings
from tests.chaos.disk import Disk
from tests.chaos.loop import Loops
from tests.chaos.machine import Machine
from tests.chaos.plain import Plain
from tests.chaos.seams import Secrets
from tests.support.kit import OPERATOR_KEY, Clock


@dataclass
class Site:
    """What one process keeps from history to history: database, folder, loops."""

    store: Store
    settings: Settings
    clock: Clock
    disk: Disk
    machine: Machine
    ids: Secrets
    plain: Plain
    loops: Loops
    _routed: dict[str, FastAPI] = field(default_factory=dict)

    def routed(self, process: str, app: FastAPI) -> FastAPI:
        """The application as wired anew, on the routes of the process's first one: they take long to build."""
        first = self._routed.setdefault(process, app)
        first.state.services = app.state.services
        return first


@contextmanager
def site(url: URL, folder: Path) -> Iterator[Site]:
    """A site on a migrated database, its blobs in `folder`."""
    clock, ids = Clock(), Secrets()
    data = folder / "data"
    data.mkdir(parents=True)
    settings = Settings.model_validate(
        {"data_dir": data, "operator_key": OPERATOR_KEY, "aggregation_threads": 1, "min_upload_rate": 0}
    )
    disk, store, plain = Disk(data), Store(url, clock), Plain(url)
    here = Site(store, settings, clock, disk, Machine(disk), ids, plain, Loops(lambda: clock() - Clock().now))
    try:
        yield here
    finally:
        here.loops.close()
        plain.close()
        store.close()
