"""The draw is kept: the same bytes every time, and what is read back gives the same parts."""

from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from flexlora_client.training.data.examples import Labelled
from flexlora_simulation.errors import ExperimentError, SimulationError
from flexlora_simulation.experiment import Experiment, parse
from flexlora_simulation.population.participants import draw_participants
from flexlora_simulation.population.population_file import FILE, write_population
from flexlora_simulation.workloads.contract import Item

ITEMS = [Item(Labelled(str(n), n % 3), "abc"[n % 3], f"g{n % 4}") for n in range(60)]
RESOURCES = [{"rank": 2}, {"rank": 8, "hold_rank": 16, "rank_pattern": {"q_proj": 4}, "speed": 0.5}]


def experiment(**partition: Any) -> Experiment:
    content = {"name": "x", "workload": {"name": "w"}, "run": {"rounds": 1}, "resources": RESOURCES}
    return parse({**content, "partition": partition})


DRAWN = experiment(by="label", participants=6, unseen=1, heldout=0.25)


def written(folder: Path, drawn: Experiment = DRAWN) -> Path:
    folder.mkdir(exist_ok=True)
    return write_population(folder, drawn, draw_participants(drawn, ITEMS), ITEMS)


def test_the_same_draw_is_the_same_file(tmp_path: Path) -> None:
    assert written(tmp_path / "a").read_bytes() == written(tmp_path / "b").read_bytes()
    path = written(tmp_path / "a")  # as an experiment that goes on does
    with pytest.raises(SimulationError, match="other participants than this experiment's"):
        written(tmp_path / "a", experiment(by="label", participants=6, unseen=1, heldout=0.25, seed=1))
    assert [each.name for each in path.parent.iterdir()] == [FILE]


def test_what_is_read_back_is_what_was_drawn(tmp_path: Path) -> None:
    path = written(tmp_path)
    again = draw_participants(experiment(by="file", path=str(path)), ITEMS)
    assert again == draw_participants(DRAWN, ITEMS)
    assert written(tmp_path / "again", experiment(by="file", path=str(path))).read_bytes() == path.read_bytes()


def test_the_file_tells_who_has_what(tmp_path: Path) -> None:
    table = pd.read_parquet(written(tmp_path))
    for row, one in zip(table.to_dict("records"), draw_participants(DRAWN, ITEMS), strict=True):
        own = [ITEMS[index] for index in (*one.part.train, *one.part.heldout)]
        assert (row["participant"], row["seen"], row["examples"]) == (one.name, one.part.seen, len(own))
        assert dict(row["labels"]) == Counter(item.label for item in own)
        assert set(row["groups"]) == {item.group for item in own}
        assert tuple(row["train"]) == one.part.train
        if one.part.seen:
            told = (row["rank"], row["hold_rank"], dict(row["rank_pattern"]), row["speed"])
            assert told == [(2, 2, {}, 1.0), (8, 16, {"q_proj": 4}, 0.5)][int(row["resource"])]
        else:
            assert pd.isna(row["rank"])


def test_another_programs_file_needs_two_columns(tmp_path: Path) -> None:
    pd.DataFrame({"participant": ["b", "a"], "train": [[3, 1], [2]]}).to_parquet(tmp_path / "own.parquet")
    found = draw_participants(experiment(by="file", path=str(tmp_path / "own.parquet")), ITEMS)
    assert [(one.name, one.part.train, one.part.heldout, one.part.seen) for one in found] == [
        ("b", (3, 1), (), True),
        ("a", (2,), (), True),
    ]


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"name": ["a"], "train": [[1]]}, "a row for each participant: its name in the column participant"),
        ({"participant": ["a"], "train": [[0.5]]}, "no Parquet file with a row"),
        ({"participant": ["a/b"], "train": [[1]]}, "no Parquet file with a row"),
        ({"participant": ["a", "a"], "train": [[1], [2]]}, "gives a name twice"),
        ({"participant": ["a", "b"], "train": [[1], [1]]}, "gives an example to two participants"),
        ({"participant": ["a"], "train": [[60]]}, "an index outside the workload's 60 training examples"),
        ({"participant": ["a"], "train": [[1]], "seen": [False]}, "has no participants that train"),
        ({"participant": ["a", "b"], "train": [[1], []]}, "a participant without examples"),
    ],
)
def test_a_wrong_file_is_told(columns: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "own.parquet"
    pd.DataFrame(columns).to_parquet(path)
    with pytest.raises(ExperimentError, match=sentence):
        draw_participants(experiment(by="file", path=str(path)), ITEMS)


def test_a_file_of_another_data_set_is_told(tmp_path: Path) -> None:
    path = written(tmp_path)
    with pytest.raises(ExperimentError, match="is of 60 training examples, the workload has 61"):
        draw_participants(experiment(by="file", path=str(path)), [*ITEMS, ITEMS[0]])
