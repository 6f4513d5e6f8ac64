"""Migrating builds exactly the tables of `tables.py`, and can be undone; the coordinator refuses any other schema."""

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import URL, create_engine, inspect

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
