"""Migrating builds exactly the tables of `tables.py`, and can be undone; the coordinator refuses any other schema."""

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import URL, create_engine, inspect, text

from flexlora_server.errors import StartupError
from flexlora_server.store import Store, _alembic
from flexlora_server.tables import Table


def test_the_migrated_schema_is_the_tables(database_url: URL) -> None:
    engine = create_engine(database_url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, Table.metadata) == []
    engine.dispose()


def test_migrating_again_changes_nothing(database_url: URL) -> None:
    store = Store(database_url)
    store.migrate()
    store.check_head()
    store.close()


def test_a_downgrade_leaves_nothing_and_can_be_taken_back(database_url: URL) -> None:
    engine = create_engine(database_url)
    with engine.begin() as connection:
        command.downgrade(_config(connection), "base")
    assert inspect(engine).get_table_names() in ([], ["alembic_version"])
    engine.dispose()
    store = Store(database_url)
    with pytest.raises(StartupError, match=r"schema none.*flexlora-server migrate"):
        store.check_head()
    store.migrate()
    store.check_head()
    store.close()


def _config(connection: object) -> Config:
    config = _alembic()
    config.attributes["connection"] = connection
    return config


def test_what_counted_before_inputs_were_frozen_counts_still(database_url: URL) -> None:
    """A database of the schema before: one round aggregates, one was abandoned."""
    engine = create_engine(database_url)
    with engine.begin() as connection:
        command.downgrade(_config(connection), "0002")
        for statement in _BEFORE_FROZEN_INPUTS:
            connection.execute(text(statement))
        command.upgrade(_config(connection), "head")
        frozen = connection.execute(
            text("SELECT round_id, position, upload_id, staleness FROM round_inputs ORDER BY 1, 2")
        )
        assert [tuple(row) for row in frozen] == [(1, 0, "b", 0), (1, 1, "a", 0)]
        counts = connection.execute(text("SELECT id, counts_in FROM uploads ORDER BY id"))
        assert [tuple(row) for row in counts] == [("a", 1), ("b", 1), ("c", None), ("d", None)]
        assert connection.execute(text("SELECT version, lease_holder FROM rounds WHERE id = 1")).one() == (0, None)
    engine.dispose()


_AT = "'2027-01-01 00:00:00+00:00'"
_BEFORE_FROZEN_INPUTS = [
    f"INSERT INTO runs (name, spec, state, version, created_at) VALUES ('r', '{{}}', 'RUNNING', 0, {_AT})",
    *(
        "INSERT INTO rounds (id, run, number, attempt, state, opened_at, failures, lease_token) "
        f"VALUES ({number}, 'r', {number}, 1, '{state}', {_AT}, 0, 0)"
        for number, state in ((1, "AGGREGATING"), (2, "ABANDONED"))
    ),
    *(f"INSERT INTO clients (id, name, enrolled_at) VALUES ('{name}', '{name}', {_AT})" for name in ("one", "two")),
    *(
        'INSERT INTO uploads (id, round_id, client_id, state, announced, size, sha256, "offset", created_at) '
        f"VALUES ('{upload}', {round_}, '{client}', '{state}', '{{}}', 1, 'x', 1, {_AT})"
        for upload, round_, client, state in (
            ("a", 1, "two", "ACCEPTED"),
            ("b", 1, "one", "ACCEPTED"),
            ("c", 2, "one", "ACCEPTED"),
            ("d", 2, "two", "OPEN"),
        )
    ),
]
