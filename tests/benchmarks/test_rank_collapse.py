"""The rank-collapse benchmark in small: its tables, its JSON, and a figure that fits a documentation page."""

import json
from pathlib import Path

import pytest

from benchmarks.rank_collapse import LEARNING_RATES, STRATEGIES, main

SMALL = ["--seeds", "1", "--rounds", "5"]


@pytest.mark.slow
def test_two_tables_and_the_json(capsys: pytest.CaptureFixture[str]) -> None:
    main(SMALL)
    *tables, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    assert [line.count("|") for line in tables] == [6] * 3 + [0] + [7] * (2 + 2 * len(LEARNING_RATES))
    assert {len(found["idle"][name]["energy"]) for name in STRATEGIES} == {3}
    assert found["idle"]["flexlora"]["energy"][-1] < 0.6
    assert found["idle"]["flexlora-residual"]["energy"][-1] == pytest.approx(1.0)
    for rates in found["learning"].values():
        assert all(len(errors[name]) == 6 and errors[name][-1] < 1 for errors in rates.values() for name in STRATEGIES)


def test_the_figure_is_small_and_the_same_every_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    for name in ("one.svg", "two.svg"):
        main([*SMALL, "--json", "-o", str(tmp_path / name)])
    drawn = (tmp_path / "one.svg").read_bytes()
    assert drawn == (tmp_path / "two.svg").read_bytes()
    assert drawn.count(b"flexlora-residual") == 3
    assert len(drawn) < 100_000
    assert len(capsys.readouterr().out.splitlines()) == 2
