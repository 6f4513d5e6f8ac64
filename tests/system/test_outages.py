"""Disk full or read-only, database or object store gone: refusals that say why, recovery without a restart, nothing lost."""

import signal
import socket
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import httpx2
import pytest

from tests.support.kit import part_head, raw_answer, raw_request
from tests.support.mounts import Disk, small_disk
from tests.support.objectstore import ObjectStore, object_store
from tests.support.outages import (
    HANDS,
    REAL,
    ROUNDS,
    SILENCE,
    Scene,
    check_refused,
    keep_asking,
    scene,
    send,
    suspend_aggregation,
)
from tests.support.postgres import Postgres, postgres
from tests.system.endurance.template import AGENTS, RUN, enroll_everybody

pytestmark = pytest.mark.slow
PUBLISHED = dict[int, str]
GONE = 30.0  # seconds of an outage
FULL = "disk is full"
TRIES = 6  # more than an aggregation may fail


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return enroll_everybody(tmp_path_factory.mktemp("template") / "enrolled")


@pytest.fixture(scope="module")
def undisturbed(template: Path, tmp_path_factory: pytest.TempPathFactory) -> PUBLISHED:
    """What is published where nothing fails."""
    with scene(template, tmp_path_factory.mktemp("undisturbed") / "place") as running:
        for number in range(1, ROUNDS + 1):
            running.take_part(number, *HANDS)
        running.place.until(lambda: ROUNDS in running.place.published(), "the run is complete")
        return running.place.published()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A small disk where the coordinator's data folder will be."""
    with small_disk(tmp_path / "place" / "coordinator") as mounted:
        yield mounted


@pytest.fixture
def database() -> Iterator[Postgres]:
    with postgres() as running:
        yield running


def test_full_disk(template: Path, undisturbed: PUBLISHED, disk: Disk, tmp_path: Path) -> None:
    """An upload does not fit, then not even a row does; both go on where they were once there is room."""
    with scene(template, tmp_path / "place") as running:
        upload, data = running.announce("large", 1)
        running.others_upload(1, len(REAL))
        disk.fill(leaving=len(data) // 2)
        refused = running.part("large", upload, data)
        check_refused(refused, "storage-full")
        assert FULL in refused.json()["detail"]
        disk.fill()
        readiness = running.http.get("/readyz")
        check_refused(readiness, "storage-full")
        fill_database(running)
        assert running.operator.expect(200, "GET", f"/v1/runs/{RUN}")["status"]["round_state"] == "COLLECTING"
        disk.free()
        assert running.announce("large", 1) == (upload, data)
        assert running.go_on("large", 1, upload, data) < len(data)
        running.operator.expect(200, "GET", "/readyz")
        running.take_part(1, "middle")
        running.finish(undisturbed)


def fill_database(running: Scene) -> None:
    """Write rows until one is refused; what was answered before is kept."""
    told: list[httpx2.Response] = []
    while not told or told[-1].status_code == 201:
        assert len(told) < 10_000, "the disk is full and rows go on"
        told.append(running.operator.call("POST", "/v1/enrolment-tokens", json={}))
    check_refused(told[-1], "storage-full", "unavailable")


def test_an_agent_at_a_full_disk(template: Path, undisturbed: PUBLISHED, disk: Disk, tmp_path: Path) -> None:
    """An agent whose update does not fit says so, waits as long as it was told, and sends it when there is room."""
    with scene(template, tmp_path / "place", gated="tiny") as running:
        running.others_upload(1, 1)
        disk.fill()
        running.place.open_gate(1)
        log = running.place.agents["tiny"].log
        running.place.until(lambda: FULL in log.read_text(), "the agent hears of the full disk")
        disk.free()
        running.take_part(1, *HANDS)
        running.place.open_gate(2)
        running.finish(undisturbed)


def test_aggregation_at_a_full_disk(template: Path, undisturbed: PUBLISHED, disk: Disk, tmp_path: Path) -> None:
    """However often the worker finds no room, the round is not FAILED, and done once there is."""
    with scene(template, tmp_path / "place") as running:
        running.take_part(1, "middle")
        upload, data = running.announce("large", 1)
        running.hand("large").send(upload, data)
        running.others_upload(1, len(AGENTS) - 1)
        disk.fill(leaving=len(data) // 2)
        running.commit("large", 1, upload)
        log = running.place.worker.log
        running.place.until(lambda: log.read_text().count("trying again") >= TRIES, "the worker tries again and again")
        round_ = running.place.round(1)
        assert round_ is not None
        assert (round_.state, round_.failures) == ("AGGREGATING", 0)
        disk.free()
        running.finish(undisturbed)


def test_read_only_disk(template: Path, undisturbed: PUBLISHED, disk: Disk, database: Postgres, tmp_path: Path) -> None:
    """Uploads are refused with the reason while the disk takes no writes; the database is elsewhere."""
    with scene(template, tmp_path / "place", database.url) as running:
        upload, data = running.announce("large", 1)
        running.others_upload(1, len(REAL))
        disk.read_only()
        refused = running.part("large", upload, data)
        check_refused(refused, "unavailable")
        assert "storage" in refused.json()["detail"]
        check_refused(running.http.get("/readyz"), "unavailable")
        running.operator.expect(200, "GET", f"/v1/runs/{RUN}/rounds/1")
        disk.writable()
        running.go_on("large", 1, upload, data)
        running.take_part(1, "middle")
        running.finish(undisturbed)


def test_no_database_for_half_a_minute(
    template: Path, undisturbed: PUBLISHED, database: Postgres, tmp_path: Path
) -> None:
    """Every request is refused in time and says for how long; agents wait it out, an upload goes on where it was."""
    with scene(template, tmp_path / "place", database.url) as running:
        upload, data = running.announce("large", 1)
        running.take_part(1, "middle")
        database.stop()
        asked = keep_asking(
            GONE,
            lambda: running.part("large", upload, data),
            lambda: running.hand("large").call("GET", f"/v1/runs/{RUN}/task", params={"wait": 5}),
            lambda: running.operator.call("GET", f"/v1/runs/{RUN}"),
            lambda: running.http.get("/readyz"),
        )
        assert asked >= 4
        assert running.http.get("/healthz").status_code == 200
        database.start()
        running.place.until(lambda: running.http.get("/readyz").status_code == 200, "the coordinator is ready again")
        running.go_on("large", 1, upload, data)
        running.finish(undisturbed)


def test_database_restarted_during_an_upload(
    template: Path, undisturbed: PUBLISHED, database: Postgres, tmp_path: Path
) -> None:
    """Half of a part has come when the database goes and returns: no byte is taken twice, none is missing."""
    with scene(template, tmp_path / "place", database.url) as running:
        upload, data = running.announce("large", 1)
        half = len(data) // 2
        with raw_request(running.place.cluster.url, part_head(upload, data), running.hand("large").key) as connection:
            connection.sendall(data[:half])
            database.stop()
            database.start()
            connection.sendall(data[half:])
            status, _ = raw_answer(connection)
        assert status in {204, 503}
        running.go_on("large", 1, upload, data)
        running.take_part(1, "middle")
        running.finish(undisturbed)


def test_database_restarted_during_an_aggregation(
    template: Path, undisturbed: PUBLISHED, database: Postgres, tmp_path: Path
) -> None:
    """The worker's connections are cut under it: the round is published once, by whoever holds the lease then."""
    with scene(template, tmp_path / "place", database.url) as running:
        running.take_part(1, *HANDS)
        suspend_aggregation(running.place, 1)
        database.stop()
        database.start()
        send(running.place.worker, signal.SIGCONT)
        running.place.until(lambda: 1 in running.place.published(), "round 1 is published")
        running.finish(undisturbed)


@pytest.fixture
def objects() -> Iterator[ObjectStore]:
    with object_store() as running:
        yield running


@pytest.mark.parametrize("silent", [False, True], ids=["refuses", "silent"])
def test_no_object_store_for_half_a_minute(
    template: Path, undisturbed: PUBLISHED, objects: ObjectStore, tmp_path: Path, silent: bool
) -> None:
    """Nobody answers at the store's address, or somebody takes connections and says nothing: uploads are refused in time."""
    told = {f"FLEXLORA_{name.upper()}": value for name, value in objects.settings("outage").items()}
    with scene(template, tmp_path / "place", None, **told) as running:
        upload, data = running.announce("large", 1)
        running.take_part(1, "middle")
        running.others_upload(1, len(AGENTS) - 1)
        with objects.gone(), socket.create_server(("127.0.0.1", objects.port)) if silent else nullcontext():
            asking = (lambda: running.part("large", upload, data), lambda: running.http.get("/readyz"))
            keep_asking(GONE, *asking, within=SILENCE)
            running.operator.expect(200, "GET", f"/v1/runs/{RUN}")
        running.go_on("large", 1, upload, data)
        running.finish(undisturbed)
