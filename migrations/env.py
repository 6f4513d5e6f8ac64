"""Alembic's entry: the coordinator hands in its connection; `alembic revision --autogenerate` opens one from the settings."""

from alembic import context
from sqlalchemy import Connection

from flexlora_server.database import engine
from flexlora_server.database.migrate import check_references
from flexlora_server.database.schema import Table
from flexlora_server.settings import load_settings


def _run(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=Table.metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()
        check_references(connection)


given = context.config.attributes.get("connection")
if given is not None:
    _run(given)
else:
    with engine.migration_engine(load_settings().url).begin() as opened:
        _run(opened)
