"""docs/experiments.md is the code: every field with its default and meaning, the paper's shares, and an example that is read."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from flexlora_simulation.experiment import (
    SHARES,
    Distribution,
    Evaluation,
    Experiment,
    Partition,
    Resource,
    Timing,
    WorkloadOptions,
    load,
)

PAGE = (Path(__file__).parents[2] / "docs" / "experiments.md").read_text()
PARTS: dict[str, type[BaseModel]] = {
    "workload": WorkloadOptions,
    "partition": Partition,
    "resources": Resource,
    "timing": Timing,
    "evaluation": Evaluation,
}


def field_rows() -> Iterator[tuple[str, str, str]]:
    """Name, default and meaning of each field, those of a part after it; of a distribution instead of a list, too."""
    for name, field in Experiment.model_fields.items():
        yield (
            name,
            "see below" if name in PARTS and not field.is_required() else _default(field),
            field.description or "",
        )
        for inner, own in PARTS[name].model_fields.items() if name in PARTS else ():
            yield f"{name}{'[]' if name == 'resources' else ''}.{inner}", _default(own), own.description or ""
        for inner, own in Distribution.model_fields.items() if name == "resources" else ():
            yield f"{name}.{inner}", _default(own), own.description or ""


def share_rows() -> Iterator[tuple[str, list[str]]]:
    """The share of each of the paper's types in a distribution."""
    for name, shares in SHARES.items():
        yield name, [f"{100 * share:g} %" for share in shares]


def _default(field: Any) -> str:
    if field.is_required():
        return "required"
    value = field.default
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    return "null" if value is None else "`{}`" if value == {} else f"`{value}`"


def table(heading: str) -> list[list[str]]:
    lines = PAGE.split(f"{heading}\n", 1)[1].split("\n\n", 1)[0].splitlines()[1:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_the_table_of_fields_is_the_fields() -> None:
    assert table("| field | default | meaning |") == [[f"`{name}`", *rest] for name, *rest in field_rows()]


def test_the_table_of_shares_is_the_shares() -> None:
    found = table("| distribution | type 1 | type 2 | type 3 | type 4 |")
    assert found == [[f"`{name}`", *shares] for name, shares in share_rows()]


def test_the_examples_are_experiments(tmp_path: Path) -> None:
    whole, resources = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "one.yaml").write_text(whole)
    found = load(tmp_path / "one.yaml")
    assert (found.partition.alpha, found.run["round_timeout"], found.evaluation.on) == (
        0.1,
        600,
        ("test", "unseen", "heldout"),
    )
    (tmp_path / "two.yaml").write_text(
        yaml.safe_dump({**yaml.safe_load(whole), **yaml.safe_load(resources), "evaluation": {}}).replace("true", "on")
    )
    assert [one.rank for one in load(tmp_path / "two.yaml").resources] == [1, 2, 4, 8]
