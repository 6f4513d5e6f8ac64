"""A full disk under SQLite."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import Connection, Engine, event

from tests.support.kit import Served


@contextmanager
def pages(most: int) -> Iterator[None]:
    """SQLite lets no database grow beyond so many pages, and says then what it says of a full disk."""

    def limit(connection: Connection) -> None:
        connection.exec_driver_sql(f"PRAGMA max_page_count = {most}")

    event.listen(Engine, "begin", limit)
    try:
        yield
    finally:
        event.remove(Engine, "begin", limit)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_full_disk_under_the_database(coordinator: Served) -> None:
    def token() -> int:
        return coordinator.operator.call("POST", "/v1/enrolment-tokens", json={"note": "x" * 200}).status_code

    with pages(1):  # SQLite takes the present size where that is more
        while token() == 201:
            pass
        refused = coordinator.operator.problem("storage-full", "POST", "/v1/enrolment-tokens", json={"note": "x" * 200})
        assert refused["status"] == 507
        coordinator.operator.expect(200, "GET", "/v1/runs")
    with pages(1_000_000):
        assert token() == 201
