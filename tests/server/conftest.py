"""Fixtures of tests that migrate: empty databases of both kinds, and a schema newer than any."""

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import URL

from flexlora_server.database import migrate
from tests.support.databases import create_database

_databases = itertools.count()

_MIGRATION = """
import sqlalchemy as sa
from alembic import op

revision, down_revision, branch_labels, depends_on = "next", "{before}", None, None


def upgrade() -> None:
    {what}
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_database(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], URL]:
    """Makes the addresses of empty databases, of each kind in turn."""

    def make() -> URL:
        name = f"empty{next(_databases)}"
        if request.param == "sqlite":
            return URL.create("sqlite", database=str(tmp_path / name / "flexlora.db"))
        return create_database(request.getfixturevalue("postgres_socket"), name)

    return make


@pytest.fixture
def next_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """In this process, adds a migration to those there are; its upgrade is the statements given."""

    def add(what: str) -> None:
        package = tmp_path / "next_version"
        shutil.copytree(Path(migrate.alembic_config().get_main_option("script_location") or ""), package / "migrations")
        script = package / "migrations" / "versions" / "next.py"
        script.write_text(_MIGRATION.format(before=migrate.head_revision(), what=what))
        monkeypatch.setattr(migrate, "__file__", str(package / "database" / "migrate.py"))

    return add
