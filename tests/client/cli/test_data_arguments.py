"""The data options of `run`, from the command line to what is trained on."""

import json
from pathlib import Path

import pytest

from flexlora_client.errors import Exit
from tests.support.command import Result, call
from tests.support.kit import Served


@pytest.fixture
def home(site: Served, tmp_path: Path) -> dict[str, str]:
    """The environment of an enrolled participant, beside a run of one round."""
    env = {"FLEXLORA_HOME": str(tmp_path / "home")}
    token = site.operator.expect(201, "POST", "/v1/enrolment-tokens", json={})["token"]
    assert call("enroll", site.url, "--token", token, env=env).code == Exit.OK
    site.run(rounds=1)
    return env


def run(env: dict[str, str], *options: str | Path) -> Result:
    return call("run", "run", "--rank", "4", "--trainer", "tests.support.trainers:Nudge", *options, "--json", env=env)


def test_all_files_are_taken_and_read_as_asked(home: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "a1.csv").write_bytes("question:answer\ntři:tři\nčtyři:\n".encode("cp1250"))
    (tmp_path / "a2.csv").write_bytes("question:answer\njeden:šest\npět:pět\n".encode("cp1250"))
    (tmp_path / "b.csv").write_bytes("question:answer\nžádný:šest\n".encode("cp1250"))
    (tmp_path / "held.csv").write_bytes("question:answer\njeden:šest\n".encode("cp1250"))
    names: list[str | Path] = ["--column", "prompt=question", "--column", "completion=answer"]
    files: list[str | Path] = [
        "--data",
        tmp_path / "a*.csv",
        "--data",
        tmp_path / "b.csv",
        "--heldout",
        tmp_path / "held.csv",
    ]
    how: list[str | Path] = [
        "--encoding",
        "cp1250",
        "--separator",
        ":",
        "--bad-rows",
        "skip",
        "--answers",
        "0",
        "--max-rounds",
        "1",
    ]
    result = run(home, *files, *names, *how)
    events = [json.loads(line) for line in result.out.splitlines()]
    counts = {"examples": 3, "heldout": 1, "rows": 6, "skipped": 1, "duplicates": 0, "leaked": 1}
    assert [event["event"] for event in events[:2]] == ["joined", "data"]
    assert counts.items() <= events[1].items()
    assert [event["note"] for event in events[1:] if event["event"] == "data-note"] == [
        "in --heldout too, and left out of training: 1",
        "bad rows, skipped: 1 of 6",
        f"{tmp_path / 'a1.csv'}, line 3: completion is empty; fill it in or delete the row.",
    ]
    assert "3 examples to train on, 1 held out" in result.err


def test_data_that_cannot_be_used_ends_before_anything_is_declared(home: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "data.tsv"
    path.write_text("prompt|completion\na|b\n|c\n")
    for options, message in [
        (["--separator", "|"], f"{path}, line 3: prompt is empty"),
        (["--separator", "tab"], "its columns are 'prompt|completion'"),
        (["--label", "ja=oui"], "--label ja=oui: the run has no label oui"),
        (["--heldout-fraction", "1"], "the held-out fraction is 1.0"),
    ]:
        result = run(home, "--data", path, *options)
        assert result.code == Exit.BAD_INPUT
        assert message in result.err
        assert "declared" not in result.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--column", "text"], "'text' is not of the form OURS=YOURS"),
        (["--column", "=text"], "'=text' is not of the form"),
        (["--label", "a="], "'a=' is not of the form YOURS=OURS"),
        (["--label", "a=b", "--label", "a=c"], "a is given twice"),
        (["--bad-rows", "keep"], "'keep' is not one of"),
        (["--heldout", "x.csv", "--heldout-fraction", "0"], "give --heldout or --heldout-fraction, not both"),
    ],
)
def test_options_that_say_nothing(options: list[str], message: str) -> None:
    result = call("run", "run", "--rank", "4", "--data", "x.csv", *options)
    assert result.code == Exit.USAGE
    assert message in " ".join(result.err.replace("│", " ").split())


def test_no_data(home: dict[str, str]) -> None:
    assert call("run", "run", "--rank", "4", env=home).code == Exit.USAGE
