"""The file of a comparison."""

from pathlib import Path

import pandas as pd
import pytest

from flexlora_simulation.errors import DataError
from flexlora_simulation.evidence.table import read, software, write
from tests.support.evidences import made_evidence, made_run


def test_what_is_written_is_read_and_a_run_is_a_line(tmp_path: Path) -> None:
    made = made_evidence(made_run("flexlora", 0, 0.1, 0.2), made_run("view", 0, 0.25, 0.3, bytes_up=None))
    write(made, tmp_path / "made.json")
    assert read(tmp_path / "made.json") == made
    lines = (tmp_path / "made.json").read_text().splitlines()
    assert [line[:24] for line in lines if '"method"' in line] == ['{"cell": "", "method": "'] * 2
    write(read(tmp_path / "made.json"), tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "made.json").read_bytes()


def test_figures_are_kept_to_five_digits(tmp_path: Path) -> None:
    write(made_evidence(made_run("flexlora", 0, 1 / 3, 0.5)), tmp_path / "made.json")
    assert read(tmp_path / "made.json").runs[0].values["test"][1] == (0.33333, 0.66667)


def test_its_rows_are_a_tidy_table() -> None:
    table = pd.DataFrame(made_evidence(made_run("flexlora", 3, 0.1, 0.2)).rows())
    assert list(table.columns[:6]) == ["cell", "method", "rate", "seed", "split", "on"]
    assert list(table.columns[6:]) == ["rank", "metric", "value", "rounds", "bytes_up", "bytes_down", "cpu_seconds"]
    assert table[(table["rank"] == 8) & (table.rounds == 2)].value.tolist() == [0.4]
    assert table.bytes_down.tolist() == [30, 60, 30, 60]


def test_the_versions_that_figures_depend_on() -> None:
    assert software().keys() > {"python", "flexlora", "torch", "transformers", "peft"}


@pytest.mark.parametrize("content", ["no JSON", "[]", '{"name": "made"}'])
def test_another_file_is_refused_in_a_sentence(tmp_path: Path, content: str) -> None:
    (tmp_path / "other.json").write_text(content)
    with pytest.raises(DataError, match=r"other.json is no file of a comparison"):
        read(tmp_path / "other.json")
