"""The definition of an experiment: as YAML and JSON, with paths beside the file, and a sentence for each wrong field."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from flexlora_simulation.errors import ExperimentError
from flexlora_simulation.experiment import Experiment, Resource, load, parse

SMALLEST: dict[str, Any] = {"name": "x", "workload": {"name": "w"}, "run": {"rounds": 3}}
WHOLE: dict[str, Any] = {
    **SMALLEST,
    "seed": 3,
    "partition": {"by": "label", "participants": 8, "alpha": 0.1, "unseen": 1},
    "resources": {"distribution": "normal", "ranks": [1, 2, 4, 8], "speeds": [1, 1, 2, 2]},
    "timing": {"dropout": 0.1},
    "run": {"rounds": 3, "late_updates": "next-round", "training": {"max_steps": 2, "learning_rate": 1}},
    "evaluation": {"on": ["test", "unseen"], "ranks": [1, 8]},
}


@pytest.mark.parametrize("content", [SMALLEST, WHOLE])
def test_yaml_json_and_what_it_says_itself_are_one_experiment(content: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(content))
    (tmp_path / "one.json").write_text(json.dumps(content, indent=1))
    expected = parse(content)
    assert load(tmp_path / "one.yaml") == load(tmp_path / "one.json") == expected
    assert parse(json.loads(expected.model_dump_json())) == expected


def test_yaml_means_what_it_looks_like(tmp_path: Path) -> None:
    """PyYAML reads YAML 1.1, where `on` is true, `no` is false and 1e-3 a text."""
    (tmp_path / "one.yaml").write_text(
        "name: x\nworkload: {name: no}\nrun: {rounds: 3, training: {learning_rate: 1e-3, weight_decay: .5, packing: true}}\n"
        "evaluation: {on: [unseen], every: 10}\ntiming: {jitter: 1., step_seconds: 2}\n"
    )
    found = load(tmp_path / "one.yaml")
    assert (found.workload.name, found.evaluation.on, found.evaluation.every) == ("no", ("unseen",), 10)
    assert found.run["training"] == {"learning_rate": 0.001, "weight_decay": 0.5, "packing": True}
    assert (found.timing.jitter, found.timing.step_seconds) == (1, 2)


def test_paths_are_relative_to_the_file_where_something_lies_there(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "p.parquet").touch()
    content = {
        **SMALLEST,
        "workload": {"name": "w", "data": "data", "model": "organisation/model"},
        "partition": {"by": "file", "path": "p.parquet"},
    }
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(content))
    loaded = load(tmp_path / "one.yaml")
    assert (loaded.workload.data, loaded.workload.model) == (str(tmp_path / "data"), "organisation/model")
    assert loaded.partition.path == str(tmp_path / "p.parquet")


def test_resources_are_a_list_a_distribution_or_its_name() -> None:
    light = parse({**SMALLEST, "resources": "heavy-tail-light"}).resources
    assert [(one.rank, one.attention_rank, one.share) for one in light] == [
        (8, None, 0.8),
        (30, None, 0.05),
        (200, 30, 0.05),
        (200, None, 0.1),
    ]
    assert Experiment(name="x", workload={"name": "w"}, resources="heavy-tail-light").resources == light  # type: ignore[arg-type]
    assert parse({**SMALLEST, "resources": [{"rank": 2, "count": 3}]}).resources == (Resource(rank=2, count=3),)


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        ({"parttition": {}}, ["parttition: there is no such field; did you mean partition? there are name, seed, "]),
        (
            {"partition": {"by": "labl", "alpha": 0, "alhpa": 1}},
            [
                "partition.by: input should be 'uniform', 'label', 'group', 'size' or 'file', not 'labl' (uniform: ",
                "partition.alpha: input should be greater than 0, not 0 (Concentration of the Dirichlet distribution)",
                "partition.alhpa: there is no such field; did you mean alpha? there are by, ",
            ],
        ),
        ({"partition": {"by": "file"}}, ["partition: by file needs path, a population.parquet"]),
        ({"partition": {"by": "file", "path": "x", "alpha": 3}}, ["partition: by file takes everything from the file: leave"]),
        ({"partition": {"path": "x"}}, ["partition: path goes with by: file; leave it out"]),
        ({"partition": {"unseen_groups": ["x"]}}, ["partition: unseen_groups goes with by: group, instead of unseen"]),
        ({"resources": "heavy"}, ["resources: distribution: input should be 'uniform', 'heavy-tail-light', "]),
        ({"resources": {"distribution": "normal", "ranks": [1]}}, ["resources: ranks: tuple should have at least 4 items"]),
        ({"resources": []}, ["resources: tuple should have at least 1 item"]),
        (
            {"resources": [{"rnk": 1}]},
            ["resources.0.rank: it is missing (LoRA rank that they train at)", "resources.0.rnk: there is no such field; did "],
        ),
        ({"resources": [{"rank": 1, "share": 1, "count": 1}]}, ["resources.0: give share or count, not both"]),
        ({"run": {}}, ["run.rounds: it is missing (Rounds to publish)"]),
        ({"run": {"rounds": 3, "name": "y"}}, ["run.name: the experiment decides it; leave it out of run"]),
        ({"run": {"rounds": 3, "training": {"warm": 1}}}, ["run.training.warm: there is no such field; did you mean warmup"]),
        ({"run": {"rounds": 3, "scaling": {}}}, ["run.scaling: give exactly one of alpha and alpha_per_rank"]),
        ({"evaluation": {"ranks": [0]}}, ["evaluation.ranks.0: input should be greater", "evaluation.ranks: input should be "]),
        ({"seed": 1.5}, ["seed: input should be a valid integer, not 1.5 (Of every draw "]),
        ({"seed": object()}, ["it is not made of plain values (texts, numbers, lists, mappings): "]),
    ],
)  # fmt: skip
def test_each_wrong_field_gets_a_sentence(change: dict[str, Any], lines: list[str]) -> None:
    with pytest.raises(ExperimentError) as told:
        parse({**SMALLEST, **change})
    found = str(told.value).splitlines()
    assert len(found) == len(lines)
    for sentence, beginning in zip(found, lines, strict=True):
        assert sentence.startswith(beginning)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot be read: No such file"),
        (b"a: [", "is neither YAML nor JSON"),
        (b"\xff\xfe\xfa", "is neither YAML nor JSON"),
        (b"- a", "holds no experiment: give name, workload and run at least"),
        (b"name: x", "one.yaml:\nworkload: it is missing"),
    ],
)
def test_a_file_that_is_no_experiment(content: bytes | None, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "one.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ExperimentError, match=sentence):
        load(path)
