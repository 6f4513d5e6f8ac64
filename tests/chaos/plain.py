"""Reads the database by plain SQL on a connection of its own, not through the product's store."""

import sqlite3
from typing import Any

import psycopg
from sqlalchemy import URL

from flexlora_server.database.schema import Table

TABLES = [table.name for table in reversed(Table.metadata.sorted_tables)]


class Plain:
    """A connection for the oracle; every question sees what is committed by then."""

    def __init__(self, url: URL) -> None:
        self._postgres = url.get_backend_name() == "postgresql"
        self._connection: Any  # the two drivers have no type in common
        if self._postgres:
            self._connection = psycopg.connect(
                dbname=url.database, user=url.username, host=str(url.query["host"]), autocommit=True
            )
        else:
            self._connection = sqlite3.connect(str(url.database), isolation_level=None)

    def ask(self, wanted: str) -> list[tuple[Any, ...]]:
        """The rows of a SELECT."""
        rows: list[tuple[Any, ...]] = self._connection.execute(wanted).fetchall()
        return rows

    def empty(self) -> None:
        """Delete every row; numbers begin at 1 again."""
        if self._postgres:
            self._connection.execute(f"TRUNCATE {', '.join(TABLES)} RESTART IDENTITY CASCADE")
            return
        self._connection.execute("BEGIN IMMEDIATE")
        for table in TABLES:
            self._connection.execute(f"DELETE FROM {table}")
        self._connection.execute("COMMIT")

    def close(self) -> None:
        """Give the connection back."""
        self._connection.close()
