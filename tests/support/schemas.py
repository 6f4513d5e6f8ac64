"""Databases of every schema there has been, as the versions that had it left them, with the files beside them.

`fixtures/schemas/NAME.KIND.sql` is a dump of a coordinator that was stopped in the middle of its work, `NAME.KIND.zip` its data
folder and the API keys of its participants. A name begins with the schema; where versions of one schema differ, it goes on.
"""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import psycopg
from sqlalchemy import URL, MetaData, create_engine, select

FOLDER = Path(__file__).parents[1] / "fixtures" / "schemas"
NAMES = sorted({path.name.partition(".")[0] for path in FOLDER.glob("*.sql")})


def load(name: str, url: URL) -> None:
    """Make an empty database what the dump holds."""
    script = (FOLDER / f"{name}.{url.get_backend_name()}.sql").read_text()
    if url.get_backend_name() == "sqlite":
        Path(str(url.database)).parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(str(url.database))) as connection:
            connection.executescript(script)
        return
    address = url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(address) as connected:
        connected.execute(script.encode())


def unpack(name: str, kind: str, folder: Path) -> dict[str, str]:
    """Put the coordinator's files into the folder; the API keys of its participants by name."""
    with ZipFile(FOLDER / f"{name}.{kind}.zip") as files:
        files.extractall(folder)
    keys: dict[str, str] = json.loads((folder / "keys.json").read_text())
    return keys


def rows(url: URL) -> dict[str, list[dict[str, Any]]]:
    """Every row of every table, in the order of the primary keys; alembic's own table is left out."""
    engine, tables = create_engine(url), MetaData()
    with engine.connect() as connection:
        tables.reflect(connection)
        found = {
            table.name: [dict(row) for row in connection.execute(select(table).order_by(*table.primary_key)).mappings()]
            for table in tables.sorted_tables
            if table.name != "alembic_version"
        }
    engine.dispose()
    return found
