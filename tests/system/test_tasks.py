"""Every kind of task from `describe` to plain PEFT, over HTTP, with agents as processes of their own and real data files."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoImageProcessor, AutoTokenizer

from demo.cluster import Cluster, cluster
from tests.support.command import Result, call
from tests.support.connecting import Waits, connect
from tests.support.data_files import as_jsonl, as_parquet
from tests.support.processes import watching
from tests.support.tasks import COLOURS, IMAGES, TEXTS, Figures, Row, Task

pytestmark = pytest.mark.slow  # half a minute each
RUN, RANKS, ROUNDS = "tasks", (2, 8), 3
TRAINED, HELD_OUT = 96, 30  # rows
TRAINING = {"learning_rate": 0.01, "epochs": 3, "batch_size": 8, "max_length": 48}


@dataclass(frozen=True)
class Site:
    """A coordinator with a run of the task, and the folder of everything."""

    made: Cluster
    task: Task
    folder: Path

    def client(self, *arguments: str | Path, home: str = "operator") -> Result:
        """A command of the operator, or of the participant with this home; it succeeds."""
        env = {"FLEXLORA_URL": self.made.url, "FLEXLORA_HOME": str(self.made.folder / home)}
        key = {"FLEXLORA_OPERATOR_KEY": self.made.operator_key} if home == "operator" else {}
        done = call(*arguments, env=env | key)
        assert done.code == 0, done.err + done.out
        return done

    def figures(self, number: int, rank: int) -> Figures:
        """What the coordinator tells of an adapter."""
        with connect(self.made.url, Waits(), key=self.made.operator_key) as api:
            told = api.round(RUN, number).summary.evaluations
        return {one.metric: one.value for one in told if one.rank == rank}


def define_run(made: Cluster, task: Task, folder: Path, labels: Path | None) -> Site:
    """Make the task's model, describe it, and start a run of it."""
    site = Site(made, task, folder)
    base = task.model.make(folder / "model")
    told: list[str | Path] = ["--task-type", task.task_type, "--problem-type", task.problem]
    told += ["--labels-from", labels] if labels else []
    ranks = [argument for rank in RANKS for argument in ("--rank", str(rank))]
    described = site.client("describe", base, *told, *ranks, "--name", RUN, "--rounds", str(ROUNDS), "--json")
    made.create_run({**json.loads(described.out), "min_clients": 2, "min_updates": 2, "training": TRAINING})
    for rank in RANKS:
        made.enroll(f"rank-{rank}")
    return site


def check_before(site: Site, rank: int, data: tuple[str | Path, ...], preview: str, encoding: str) -> None:
    """`data preview` and `doctor` of an enrolled participant say what they should."""
    home = f"rank-{rank}"
    shown = site.client("data", "preview", RUN, *data[:2], "-n", "2", home=home)
    assert preview in shown.out
    asked = site.client("doctor", RUN, "--rank", str(rank), *data, "--json", home=home)
    checks = {check["check"]: check for check in asked.json["checks"]}
    assert {check["state"] for check in checks.values()} <= {"passed", "warning"}
    assert encoding in checks["encoding"]["detail"]
    assert "examples a second" in checks["speed"]["detail"]


def take_part(site: Site, given: Mapping[int, tuple[str | Path, ...]], automatic: int | None = None) -> None:
    """An agent of each rank, with these arguments, until the run is complete; `automatic` is found by itself."""
    options = ("--answers", str(HELD_OUT), "--evaluation-share", "1000")
    started = []
    for rank, arguments in given.items():
        asked = "auto" if rank == automatic else str(rank)
        started.append(site.made.agent(f"rank-{rank}", RUN, "--rank", asked, *map(str, arguments), *options))
    with watching(started) as watched:
        assert [agent.finish() for agent in watched] == [0, 0], [agent.log() for agent in watched]
    for agent, rank in zip(watched, given, strict=True):
        assert [event["rank"] for event in agent.told("declared")] == [rank]
        assert "Traceback" not in agent.log()


def opened(site: Site, number: int, rank: int) -> tuple[Any, Any]:
    """The exported adapter as its own card says to load it, and the model's tokenizer or image processor."""
    folder = site.folder / f"exported-{number}-{rank}"
    site.client("export", RUN, "--round", str(number), "--rank", str(rank), "-o", folder)
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert code
    names: dict[str, Any] = {}
    exec(code[1].replace("this/folder", str(folder)), names)
    reader = AutoImageProcessor if site.task.task_type == "IMAGE_CLASSIFICATION" else AutoTokenizer
    return names["model"].eval(), reader.from_pretrained(site.folder / "model")


def check_learned(site: Site, rank: int, heldout: list[Row]) -> None:
    """The metric has risen at the coordinator; its figures are those of the exported adapters, computed by hand."""
    told = [site.figures(number, rank) for number in range(ROUNDS + 1)]
    print(site.task.task_type, rank, *(f"{name} {[round(one[name], 4) for one in told]}" for name in told[-1]))
    first, last = told[0][site.task.rises], told[-1][site.task.rises]
    assert last >= max(0.9, first + 0.25)
    assert told[-1]["loss"] < told[0]["loss"]
    for number in (0, ROUNDS):
        with torch.no_grad():
            by_hand = site.task.by_hand(*opened(site, number, rank), heldout)
        assert {name: told[number][name] for name in by_hand} == pytest.approx(by_hand, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("task", TEXTS.values(), ids=TEXTS.keys())
def test_a_task_on_texts(task: Task, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("\n".join(task.labels))
    with cluster(tmp_path / "cluster") as made:
        site = define_run(made, task, tmp_path, tmp_path / "labels.txt" if task.labels else None)
        heldout = task.make_rows(HELD_OUT, seed=0)
        kept = as_jsonl(tmp_path / "heldout", heldout)
        given = {
            2: ("--data", as_jsonl(tmp_path / "lines", task.make_rows(TRAINED, 1)), "--heldout", kept),
            8: ("--data", as_parquet(tmp_path / "table", task.make_rows(TRAINED, 2)), "--heldout", kept),
        }
        if task.task_type == "TOKEN_CLS":
            check_before(site, 2, given[2], " he[[B-PER]]llo", "examples are cut at 48 tokens, 0 are left out")
        take_part(site, given)
        for rank in RANKS:
            check_learned(site, rank, heldout)


def write_image_folder(folder: Path, rows: list[Row]) -> Path:
    """A folder for each class."""
    for number, row in enumerate(rows):
        (folder / row["label"]).mkdir(parents=True, exist_ok=True)
        (folder / row["label"] / f"{number}.png").write_bytes(row["image"])
    return folder


def write_image_table(path: Path, rows: list[Row]) -> Path:
    """Parquet as the library `datasets` writes it: an image is bytes and path, a label a number with a name in the schema."""
    names = COLOURS[::-1]
    table = pa.table(
        {
            "image": [{"bytes": row["image"], "path": f"{number}.png"} for number, row in enumerate(rows)],
            "label": [names.index(row["label"]) for row in rows],
        }
    )
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(metadata), path)
    return path


def test_images_in_a_folder_and_in_a_table(tmp_path: Path) -> None:
    heldout = IMAGES.make_rows(HELD_OUT, seed=0)
    pictures = write_image_folder(tmp_path / "pictures", IMAGES.make_rows(TRAINED, 1))
    table = write_image_table(tmp_path / "pictures.parquet", IMAGES.make_rows(TRAINED, 2))
    kept = write_image_folder(tmp_path / "kept", heldout)
    with cluster(tmp_path / "cluster") as made:
        site = define_run(made, IMAGES, tmp_path, pictures)
        given = {2: ("--data", pictures, "--heldout", kept), 8: ("--data", table, "--heldout", kept)}
        for rank in RANKS:
            check_before(site, rank, given[rank], "PNG image of 20 x 18 [[", f"{TRAINED} examples: all are images")
        take_part(site, given, automatic=8)
        for rank in RANKS:
            check_learned(site, rank, heldout)
