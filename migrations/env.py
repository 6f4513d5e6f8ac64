"""Alembic's entry: the coordinator hands in its connection; `alembic revision --autogenerate` opens one from the settings."""

from alembic import context
from sqlalchemy import Connection, create_engine

from flexlora_server.settings import load_settings
from flexlora_server.tables import Table


def _run(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=Table.metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    _run(given)
else:
    with create_engine(load_settings().url).begin() as opened:
        _run(opened)
