"""What is counted from the agents' events, and how it is shown."""

import pytest

from benchmarks.lib.federation.figures import Row, Tally, printer

LINES = [
    ("a", {"event": "task", "round": 1}),
    ("a", {"event": "downloaded", "round": 1, "bytes": 100}),
    ("b", {"event": "task", "round": 1}),
    ("b", {"event": "downloaded", "round": 1, "bytes": 30}),
    ("a", {"event": "accepted", "round": 1, "bytes": 70}),
    ("b", {"event": "lost", "round": 1}),
    ("a", {"event": "task", "round": 2}),
    ("a", {"event": "downloaded", "round": 2, "bytes": 5}),
    ("a", {"event": "accepted", "round": 2, "bytes": 70}),
    ("a", {"event": "downloaded", "round": 2, "bytes": 11}),
    ("b", {"event": "downloaded", "round": 2, "bytes": 12}),
    ("a", {"event": "evaluated", "round": 2, "metrics": {"loss": 0.5}}),
]


def test_bytes_are_counted_for_the_round_they_were_fetched_for() -> None:
    tally = Tally()
    for name, event in LINES:
        tally.take(name, event)
    assert dict(tally.down) == {1: 130, 2: 5, 0: 23}  # 0: fetched when the run was over
    assert (tally.records["a"].uploaded, tally.records["a"].downloaded) == (140, 116)
    assert tally.records["a"].evaluations == {2: {"loss": 0.5}}


def test_a_round_is_published_when_the_next_is_handed_out_or_the_run_is_complete() -> None:
    tally, seen = Tally(), []
    for name, event in [*LINES, ("b", {"event": "completed", "rounds": 2})]:
        tally.take(name, event)
        seen.append(tally.published)
    assert seen == [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 2]


def test_rows_are_printed_under_one_heading(capsys: pytest.CaptureFixture[str]) -> None:
    show = printer(("accuracy",), silent=False)
    for number in range(3):
        show(Row(number, {"accuracy": number / 4, "loss": 1.0}, 8, 1234567, 7654321, 2.5))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["round", "accuracy", "updates", "bytes", "up", "bytes", "down", "seconds"]
    assert [line.split()[:2] for line in lines[1:]] == [["0", "0.0000"], ["1", "0.2500"], ["2", "0.5000"]]
    assert lines[1].split()[2:] == ["8", "1,234,567", "7,654,321", "2.5"]


def test_nothing_is_printed_where_json_alone_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    printer(("accuracy",), silent=True)(Row(0, {"accuracy": 0.0}, 0, 0, 0, 0.0))
    assert capsys.readouterr().out == ""
