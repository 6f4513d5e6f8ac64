"""`python -m tests.support.dump_schema`: fills a database of the newest schema and dumps it to `fixtures/schemas`.

Run it before the schema changes: later migrations are tested on what earlier versions left behind. The files are those that
`schemas` reads, for SQLite and PostgreSQL; every table has rows, and the run `stopped` is in its third round of four.
"""

import json
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from sqlalchemy import URL

from flexlora_server.database.migrate import head_revision
from flexlora_server.database.transactions import Store
from tests.support.databases import create_database, migrated_sqlite, postgres_cluster, postgres_programs
from tests.support.kit import Clock, Participant, Served, encode, part, served, spec, tensors
from tests.support.schemas import FOLDER

TINY: dict[str, Any] = {
    "ranks": [2, 3],
    "modules": [
        {"name": "q_proj", "out_features": 4, "in_features": 5},
        {"name": "up_proj", "out_features": 6, "in_features": 5},
    ],
    "round_timeout": 2_592_000.0,
}
PAIR = {"min_clients": 2, "min_updates": 2}
RANKS = {"one": 2, "two": 3}
RUNS: dict[str, dict[str, Any]] = {
    "done": {"rounds": 1},
    "cancelled": {},
    "waiting": {},
    "missed": {**PAIR, "round_timeout": 3.0},
    "stopped": {**PAIR, "rounds": 4},
}


def fill(coordinator: Served) -> dict[str, str]:
    """Runs in every state, and what hangs on them; the participants' API keys by name."""
    people = {name: coordinator.enroll(name) for name in RANKS}
    gone = coordinator.enroll("gone")
    coordinator.operator.expect(204, "DELETE", f"/v1/clients/{gone.client_id}")
    coordinator.operator.expect(201, "POST", "/v1/enrolment-tokens", json={"note": "never used"})
    people["two"].key = people["two"].expect(201, "POST", "/v1/clients/me/keys")["api_key"]
    coordinator.operator.expect(201, "POST", "/v1/runs", json=spec("draft", **TINY))
    for name, changes in RUNS.items():
        coordinator.run(name, **{**TINY, **changes})
    for name in ("done", "cancelled"):
        _upload(coordinator, people["one"], name, seed=9)
        coordinator.work()
    coordinator.operator.expect(200, "POST", "/v1/runs/cancelled/cancel")
    _miss_the_quorum(coordinator, people)
    _stop_in_the_third_round(coordinator, people)
    _upload(coordinator, people["one"], "waiting", seed=3)  # no worker comes: its round stays AGGREGATING
    return {name: str(participant.key) for name, participant in people.items()}


def _miss_the_quorum(coordinator: Served, people: dict[str, Participant]) -> None:
    people["two"].declare("missed", 3)
    _upload(coordinator, people["one"], "missed", seed=4)
    coordinator.clock.advance(3)
    while coordinator.round("missed", 1)["summary"]["attempt"] < 2:
        people["two"].call("GET", "/v1/runs/missed/task", params={"wait": 1})


def _stop_in_the_third_round(coordinator: Served, people: dict[str, Participant]) -> None:
    for number in (1, 2, 3):
        people["two"].declare("stopped", 3)
        _upload(coordinator, people["one"], "stopped", seed=10 * number + 2)
        task, data = (
            people["two"].task("stopped"),
            encode(tensors(coordinator.spec("stopped"), 3, seed=10 * number + 3)),
        )
        if number == 3:
            upload, half = people["two"].announce(task, data)["id"], data[: len(data) // 2]
            people["two"].expect(204, "PATCH", f"/v1/uploads/{upload}", headers=part(half, 0), content=half)
            return
        people["two"].upload(task, data)
        coordinator.work()
        for name, rank in RANKS.items():
            measured = {"rank": rank, "examples": 5, "metrics": {"loss": 1.0 / number}}
            people[name].expect(204, "POST", f"/v1/runs/stopped/rounds/{number}/evaluations", json=measured)


def _upload(coordinator: Served, participant: Participant, run: str, seed: int) -> None:
    """An update of rank 2."""
    participant.declare(run, 2)
    participant.upload(participant.task(run), encode(tensors(coordinator.spec(run), 2, seed=seed)))


def dump(url: URL, target: Path) -> None:
    """The database's statements, without what is only `pg_dump`'s."""
    if url.get_backend_name() == "sqlite":
        with closing(sqlite3.connect(str(url.database))) as connection:
            target.write_text("\n".join(connection.iterdump()) + "\n")
        return
    program = (postgres_programs() or Path()) / "pg_dump"
    options = ["--no-owner", "--no-privileges", "--column-inserts"]
    address = url.set(drivername="postgresql").render_as_string(hide_password=False)
    found = subprocess.run([program, *options, address], check=True, capture_output=True, text=True).stdout
    kept = [
        line
        for line in found.splitlines()
        if line and not line.startswith(("--", "\\", "SET ", "SELECT pg_catalog.set_config"))
    ]
    target.write_text("\n".join(kept) + "\n")


def pack(data: Path, keys: dict[str, str], target: Path) -> None:
    """The blobs, the uploads on their way, and the keys."""
    with ZipFile(target, "w", ZIP_DEFLATED) as files:
        files.writestr(ZipInfo("keys.json"), json.dumps(keys), ZIP_DEFLATED)
        for path in sorted(data.rglob("*")):
            name = path.relative_to(data)
            if path.is_file() and name.parts[0] in ("blobs", "partial"):
                files.writestr(ZipInfo(str(name)), path.read_bytes(), ZIP_DEFLATED)


@contextmanager
def databases(folder: Path) -> Iterator[list[URL]]:
    """A migrated, empty database of each kind."""
    programs = postgres_programs()
    if programs is None:
        raise SystemExit("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    with postgres_cluster(programs) as socket:
        url = create_database(socket, "dumped")
        store = Store(url)
        store.migrate()
        store.close()
        yield [migrated_sqlite(folder), url]


def main() -> None:
    """Dump both kinds."""
    with TemporaryDirectory() as folder, databases(Path(folder)) as urls:
        for url in urls:
            kind, clock, data = url.get_backend_name(), Clock(), Path(folder) / url.get_backend_name()
            store = Store(url, clock)
            with served(store, data, clock) as coordinator:
                keys = fill(coordinator)
            store.close()
            dump(url, FOLDER / f"{head_revision()}.{kind}.sql")
            pack(data, keys, FOLDER / f"{head_revision()}.{kind}.zip")
            print(FOLDER / f"{head_revision()}.{kind}.sql")


if __name__ == "__main__":
    main()
