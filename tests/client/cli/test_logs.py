"""`logs` and `status`: what an agent left for people, also after it ended."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest

from flexlora_client.agent.diary import LOG_FILE, Diary, places
from flexlora_client.cli.logs import new_lines
from flexlora_client.errors import Exit
from tests.support.command import call
from tests.support.kit import Served


def test_what_an_agent_leaves_for_people(site: Served, tmp_path: Path) -> None:
    site.run(rounds=2)
    home = tmp_path / "home"
    env = {"FLEXLORA_HOME": str(home)}
    token = site.operator.expect(201, "POST", "/v1/enrolment-tokens", json={})["token"]
    assert call("enroll", site.url, "--token", token, "--name", "site a", env=env).code == Exit.OK
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": "one"}\n')
    given = ("run", "run", "--rank", "4", "--data", data, "--heldout-fraction", "0")
    done = call(*given, "--trainer", "tests.support.trainers:Nudge", env=env)
    assert done.code == Exit.OK
    failed = call(*given, "--trainer", "tests.support.trainers:Nowhere", env=env)
    assert failed.code == Exit.BAD_INPUT
    written = [line.split(" ", 2)[2] for line in call("logs", "run", env=env).out.splitlines()]
    told = [line.split(": ", 1)[1] for line in done.err.splitlines()]
    assert written == [*told, failed.err.strip()]
    assert call("logs", "run", "-n", "1", env=env).out.rstrip("\n").endswith(failed.err.strip())
    [here] = call("status", "--json", env=env).json["here"]
    assert (here["run"], here["rank"], here["round"], here["accepted"], here["last"]) == ("run", 4, 2, 2, "error")
    shown = call("status", env=env).out
    assert f"of {home}" in shown
    assert "2 of 2" in shown
    for name in ("other", "../run"):
        assert call("logs", name, env=env).code == Exit.BAD_INPUT


def test_lines_are_followed_into_the_next_file(tmp_path: Path) -> None:
    diary, path = Diary(tmp_path, "run"), tmp_path / LOG_FILE
    diary.line("before")

    def renew() -> None:
        diary.line("last of the first file")
        diary._handler.doRollover()
        diary.line("first of the second")

    coming: list[Callable[[], None]] = [lambda: diary.line("one"), lambda: diary.line("two"), renew]

    def sleep(seconds: float) -> None:
        """What happens while the reader sleeps."""
        coming.pop(0)()

    lines = new_lines(path, path.stat().st_size, sleep)
    told = [line.split(" ", 2)[2] for line in islice(lines, 4)]
    lines.close()
    diary.close()
    assert told == ["one", "two", "last of the first file", "first of the second"]


def test_a_folder_that_takes_no_writes_ends_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    diary = Diary(tmp_path / "gone", "run")
    diary.line("lost")
    diary.event("declared", "2030-01-01T00:00:00Z", {"rank": 4})
    diary.close()
    assert capsys.readouterr() == ("", "")
    assert places(tmp_path) == []
