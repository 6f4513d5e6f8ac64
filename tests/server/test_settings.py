"""The database's URL, whatever the data folder is called."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from flexlora_server.cli import app
from flexlora_server.settings import Settings


@pytest.mark.parametrize("name", ["q?x=1", "50%", "a%20b", "a b#c", "x@y:z"])
def test_the_database_is_in_its_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / name
    monkeypatch.setenv("FLEXLORA_DATA_DIR", str(folder))
    monkeypatch.delenv("FLEXLORA_DATABASE_URL", raising=False)
    done = CliRunner().invoke(app, ["migrate"])
    assert done.exit_code == 0, done.output
    assert [path.name for path in folder.iterdir()] == ["flexlora.db"]
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_url_is_taken_as_it_is() -> None:
    url = Settings(database_url="postgres://flexlora@db/runs?host=%2Fsocket").url
    assert (url.drivername, url.database, url.query) == ("postgresql+psycopg", "runs", {"host": "/socket"})
