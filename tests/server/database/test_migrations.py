"""Migrating builds exactly the tables of `schema.py` and keeps what a database of any earlier schema holds; it can be undone.

Every migration runs through `Store.migrate`, on databases full of what earlier versions wrote.
"""

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, create_engine, inspect, text

from flexlora_server.database import migrate
from flexlora_server.database.schema import Table
from flexlora_server.database.transactions import Store
from flexlora_server.errors import StartupError
from tests.support import schemas

SCRIPTS = list(ScriptDirectory.from_config(migrate.alembic_config()).walk_revisions())  # the newest first
Rows = dict[str, list[dict[str, Any]]]


def run_migrate(url: URL) -> None:
    store = Store(url)
    store.migrate()
    store.check_head()
    store.close()


def check_tables(url: URL) -> None:
    engine = create_engine(url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, Table.metadata) == []
    engine.dispose()


def shape(url: URL) -> dict[str, Any]:
    """The columns, foreign keys and indexes of every table, whatever their order."""
    engine = create_engine(url)
    inspector = inspect(engine)
    tables = {
        table: (
            {column["name"]: (str(column["type"]), column["nullable"]) for column in inspector.get_columns(table)},
            sorted(
                (key["constrained_columns"], key["referred_table"], key["referred_columns"])
                for key in inspector.get_foreign_keys(table)
            ),
            sorted(
                (str(index["name"]), index["column_names"], index["unique"]) for index in inspector.get_indexes(table)
            ),
        )
        for table in inspector.get_table_names()
    }
    engine.dispose()
    return tables


def common(rows_by_table: Rows, *others: Rows) -> Rows:
    """The rows with only the columns that all the others have too; a run's error bound, which migrations add, left out."""
    common_rows = {}
    for table in rows_by_table:
        columns = [rows[table][0].keys() for rows in (rows_by_table, *others) if rows.get(table)]
        if len(columns) == 1 + len(others):
            shared = [name for name in columns[0] if all(name in other for other in columns)]
            common_rows[table] = [{name: row[name] for name in shared} for row in rows_by_table[table]]
    for row in common_rows.get("runs", []):
        row["spec"] = {key: value for key, value in row["spec"].items() if key != "error_bound"}
    return common_rows


def test_the_migrated_schema_is_the_tables(database_url: URL) -> None:
    check_tables(database_url)


def test_migrating_again_changes_nothing(database_url: URL) -> None:
    used = Store(database_url)
    used.check_head()
    run_migrate(database_url)  # also while it is in use
    used.close()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.revision)
def test_there_is_a_dump_of_the_schema_before(script: Any) -> None:
    """CONTRIBUTING.md says how to make one."""
    before = script.down_revision
    made = [name for name in schemas.NAMES if name.partition("-")[0] == before]
    assert made or before is None, f"tests/fixtures/schemas holds no dump of schema {before}"
    for name, kind, suffix in itertools.product(made, ("sqlite", "postgresql"), ("sql", "zip")):
        assert (schemas.FOLDER / f"{name}.{kind}.{suffix}").exists()


_shapes: dict[str, dict[str, dict[str, Any]]] = {}  # by the kind of database and the revision


def empty_shapes(empty_database: Callable[[], URL]) -> dict[str, dict[str, Any]]:
    """The shape of every revision, of a database that was empty when it was migrated; made once for each kind."""
    url = empty_database()
    made = _shapes.setdefault(url.get_backend_name(), {})
    if not made:
        run_migrate(url)
        made[SCRIPTS[0].revision] = shape(url)
        for script in SCRIPTS[1:]:
            migrate.migrate(url, command.downgrade, script.revision)
            made[script.revision] = shape(url)
    return made


# the oldest goes up and down through all of them in the next test, too
@pytest.mark.parametrize(
    "name",
    [*(pytest.param(name, marks=pytest.mark.slow) for name in schemas.NAMES[:-1]), schemas.NAMES[-1]],
)
def test_up_down_and_up_again(name: str, empty_database: Callable[[], URL]) -> None:
    shapes = empty_shapes(empty_database)
    url = empty_database()
    schemas.load(name, url)
    before = schemas.rows(url)
    assert all(before.values()), "every table holds something"
    run_migrate(url)
    check_tables(url)
    after = schemas.rows(url)
    assert common(after, before) == common(before, after)
    assert common(after, before).keys() == before.keys()
    assert all("error_bound" in row["spec"] for row in after["runs"])
    for script in SCRIPTS[1:]:
        migrate.migrate(url, command.downgrade, script.revision)
        assert shape(url) == shapes[script.revision]
        down = schemas.rows(url)
        assert common(down, after) == common(after, down)
    run_migrate(url)
    check_tables(url)
    again = schemas.rows(url)
    assert common(again, down) == common(after, down), "what the oldest schema holds is there"
    assert shape(url) == shapes[SCRIPTS[0].revision]


def test_the_oldest_schema_goes_up_as_it_went_down(empty_database: Callable[[], URL]) -> None:
    """What the migrations make of what was there, they make again."""
    url = empty_database()
    schemas.load("0001", url)
    run_migrate(url)
    after = schemas.rows(url)
    migrate.migrate(url, command.downgrade, "0001")
    run_migrate(url)
    assert schemas.rows(url) == after


def test_a_downgrade_leaves_nothing_and_can_be_taken_back(empty_database: Callable[[], URL]) -> None:
    url = empty_database()
    schemas.load("0003", url)
    run_migrate(url)
    migrate.migrate(url, command.downgrade, "base")
    assert shape(url).keys() == {"alembic_version"}
    store = Store(url)
    with pytest.raises(StartupError, match=r"schema none.*flexlora-server migrate"):
        store.check_head()
    store.migrate()
    store.check_head()
    store.close()


def test_what_counted_before_inputs_were_frozen_counts_still(empty_database: Callable[[], URL]) -> None:
    """One round aggregates, one collects, attempts were abandoned."""
    url = empty_database()
    schemas.load("0002", url)
    run_migrate(url)
    found = schemas.rows(url)
    rounds = {row["id"]: row for row in found["rounds"]}
    frozen = {row["upload_id"]: row for row in found["round_inputs"]}
    for upload in found["uploads"]:
        round_ = rounds[upload["round_id"]]
        counts = upload["state"] == "ACCEPTED" and round_["state"] != "ABANDONED"
        assert upload["counts_in"] == (round_["number"] if counts else None)
        assert (upload["id"] in frozen) == (counts and round_["state"] in {"AGGREGATING", "PUBLISHED"})
    assert {rounds[row["round_id"]]["state"] for row in frozen.values()} == {"AGGREGATING", "PUBLISHED"}
    assert all((row["version"], row["lease_holder"]) == (0, None) for row in rounds.values())
    uploads = {row["id"]: row for row in found["uploads"]}
    by_client = [(row["round_id"], uploads[row["upload_id"]]["client_id"]) for row in found["round_inputs"]]
    assert by_client == sorted(by_client), "positions follow the participants"


FAULTS = {
    "raises": "raise sa.exc.DatabaseError('a statement', {}, Exception('by and by'))",
    "loses rows that others refer to": "op.get_bind().execute(sa.text('DELETE FROM runs'))",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_migration_that_fails_leaves_the_database_as_it_was(
    fault: str, empty_database: Callable[[], URL], next_schema: Callable[[str], None]
) -> None:
    url = empty_database()
    schemas.load("0001", url)
    before, as_it_was = schemas.rows(url), shape(url)
    next_schema(f"op.execute('UPDATE rounds SET attempt = attempt + 1'); {FAULTS[fault]}")
    store = Store(url)
    with pytest.raises(StartupError, match="as it was before"):
        store.migrate()
    store.close()
    assert (schemas.rows(url), shape(url)) == (before, as_it_was)


def test_a_database_of_a_newer_version(database_url: URL) -> None:
    engine = create_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    store = Store(database_url)
    with pytest.raises(StartupError, match="of another version of FlexLoRA"):
        store.migrate()
    store.close()


@pytest.mark.parametrize("part", ["50%", "%(here)s", "what?x=1", "a b"])
def test_migrations_in_any_folder(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the package is installed: the migrations are within it."""
    package = tmp_path / part / "flexlora_server"
    shutil.copytree(Path(SCRIPTS[0].path).parents[1], package / "migrations")
    monkeypatch.setattr(migrate, "__file__", str(package / "database" / "migrate.py"))
    assert Config.get_main_option(migrate.alembic_config(), "script_location") == str(package / "migrations")
    run_migrate(URL.create("sqlite", database=str(tmp_path / part / "flexlora.db")))
    assert (tmp_path / part / "flexlora.db").exists()
