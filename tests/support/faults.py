"""Provokes the problems that no request alone brings about: a slow sender, a full disk, a lost database, damage."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from flexlora_server.api import receive_part
from flexlora_server.database.transactions import Store
from flexlora_shared.problems import Code
from tests.support.databases import postgres_url
from tests.support.kit import Api, Served, part, part_head, raw_answer, raw_request
from tests.support.provocations import Answer, answer, provokes


@provokes(Code.TOO_SLOW)
def _(c: Served) -> Answer:
    participant, task, data = c.working()
    upload = participant.announce(task, data)["id"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(receive_part, "RATE_GRACE_S", 0.2)
        connection = raw_request(c.url, part_head(upload, data), participant.key)
        connection.sendall(data[:10])
        slow = raw_answer(connection)
    kept = participant.call("HEAD", f"/v1/uploads/{upload}").headers["upload-offset"]
    assert int(kept) == 10
    participant.send(upload, data, 10)
    participant.commit(upload)
    return slow


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """The kernel lets no file of this process grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@provokes(Code.STORAGE_FULL)
def _(c: Served) -> Answer:
    module = {"name": "wide", "out_features": 16_000, "in_features": 16_000}
    participant, task, data = c.working(modules=[module], norm_bound=1e9)
    upload = participant.announce(task, data)["id"]
    with file_size_limit(900_000):
        response = participant.call("PATCH", f"/v1/uploads/{upload}", headers=part(data, 0), content=data)
    assert response.headers["retry-after"]
    offset = int(participant.call("HEAD", f"/v1/uploads/{upload}").headers["upload-offset"])
    participant.send(upload, data, offset)
    participant.commit(upload)
    return answer(response)


@contextmanager
def outage(store: Store) -> Iterator[None]:
    """The database cannot be reached, and the connections there were are gone."""
    if store.url.get_backend_name() == "sqlite":
        folder = Path(store.url.database or "").parent
        away = folder.rename(folder.with_suffix(".away"))
        store.close()
        yield
        away.rename(folder)
        return
    name, host = store.url.database, store.url.query["host"]
    engine = create_engine(postgres_url(Path(str(host)), "postgres"), isolation_level="AUTOCOMMIT")
    with engine.connect() as admin:
        admin.execute(text(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false'))
        admin.execute(text(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"))
        yield
        admin.execute(text(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true'))
    engine.dispose()


@provokes(Code.UNAVAILABLE)
def _(c: Served) -> Answer:
    participant, task, data = c.working()
    upload = participant.announce(task, data)["id"]
    participant.send(upload, data)
    with outage(c.store):
        response = participant.call("PUT", f"/v1/uploads/{upload}/commit")
        Api(c.http).problem("unavailable", "GET", "/readyz")
        assert c.http.get("/healthz").status_code == 200
    assert response.headers["retry-after"]
    participant.commit(upload)
    Api(c.http).expect(200, "GET", "/readyz")
    return answer(response)


@provokes(Code.INTERNAL)
def _(c: Served) -> Answer:
    c.run()
    with c.store.reading() as tx:
        sha256 = tx.session.scalar(text("SELECT sha256 FROM adapters"))
    stored = c.settings.data_dir / "blobs" / sha256[:2] / sha256
    content = stored.read_bytes()
    stored.write_bytes(b"damaged")
    response = c.operator.call("GET", "/v1/runs/run/rounds/0/adapter?rank=4")  # not cut before
    stored.write_bytes(content)
    assert "damaged" not in response.text
    c.operator.expect(200, "GET", "/v1/runs/run/rounds/0/adapter?rank=4")
    return answer(response)
