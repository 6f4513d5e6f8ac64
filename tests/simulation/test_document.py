"""docs/simulation.md says what the program does."""

import re
from pathlib import Path

import pytest
import typer

from flexlora_simulation.cli.commands import app
from flexlora_simulation.results.columns import columns_of
from flexlora_simulation.results.tables import TABLES

DOCUMENT = (Path(__file__).parents[2] / "docs" / "simulation.md").read_text()
TYPES = {int: "integer", float: "number", str: "text"}


def section(heading: str) -> str:
    return DOCUMENT.split(f"\n{heading}\n", 1)[1].split("\n##", 1)[0]


@pytest.mark.parametrize("name", TABLES)
def test_every_column_is_described(name: str) -> None:
    rows = [
        f"| `{column.name}` | {TYPES[column.type]}{', or null' if column.optional else ''} | {column.meaning} |"
        for column in columns_of(TABLES[name])
    ]
    found = section(f"### {name}")
    assert [line for line in found.splitlines() if line.startswith("| `")] == rows
    named = re.findall(r"`([a-z]+)`", found.splitlines()[1])
    assert tuple(named) == TABLES[name].key


def test_every_table_has_a_section() -> None:
    assert re.findall(r"^### (\w+)$", DOCUMENT, re.MULTILINE) == list(TABLES)


def test_every_option_of_run_is_described() -> None:
    command = typer.main.get_command(app).commands["run"]  # type: ignore[attr-defined]
    options = {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
    table = re.findall(r"^\| (`--[^|]*) \|", DOCUMENT, re.MULTILINE)
    assert {option for cell in table for option in re.findall(r"`(--[a-z]+)`", cell)} == options - {"--help"}
