"""The home folder: who may read it, and what happens to a damaged one."""

import stat
from pathlib import Path

import pytest

from flexlora_client import credentials
from flexlora_client.credentials import Identity
from flexlora_client.errors import BadInput

IDENTITY = Identity(url="https://host", client_id="c1", name="site", api_key="secret")


def test_only_the_owner_may_read_the_key(tmp_path: Path) -> None:
    path = credentials.save(tmp_path / "deep" / "home", IDENTITY)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert credentials.load(path.parent) == IDENTITY


def test_saving_again_replaces_the_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    credentials.save(tmp_path, IDENTITY)
    path = credentials.save(tmp_path, IDENTITY.model_copy(update={"api_key": "other"}))
    assert credentials.load(tmp_path).api_key == "other"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_home_without_credentials_says_how_to_enroll(tmp_path: Path) -> None:
    assert not credentials.is_enrolled(tmp_path)
    with pytest.raises(BadInput, match="flexlora-client enroll"):
        credentials.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"url": 1}'])
def test_damaged_credentials(tmp_path: Path, content: bytes) -> None:
    (tmp_path / credentials.CREDENTIALS_FILE).write_bytes(content)
    with pytest.raises(BadInput, match="is damaged"):
        credentials.load(tmp_path)


def test_a_home_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    with pytest.raises(BadInput, match="cannot create the folder"):
        credentials.save(tmp_path / "home" / "inner", IDENTITY)


def test_the_home_folder_is_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FLEXLORA_HOME", str(tmp_path))
    assert credentials.default_home() == tmp_path
    monkeypatch.delenv("FLEXLORA_HOME")
    assert credentials.default_home().name == "flexlora"
