"""docs/research.md: the package that it shows, run in the simulation and on a live coordinator, with the same adapters."""

import importlib
import json
import os
import re
import sys
import tomllib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from demo.cluster import Cluster, cluster
from flexlora_server.aggregation.factors import GlobalFactors, Update
from flexlora_server.aggregation.strategies.registry import strategies, strategy
from flexlora_server.database.queries import adapters
from flexlora_server.database.transactions import Store
from flexlora_server.settings import Settings
from flexlora_simulation import load, run_definition, simulate
from flexlora_simulation.errors import ExperimentError
from flexlora_simulation.experiment import WorkloadOptions
from flexlora_simulation.workloads.registry import open_workload, workload_names
from tests.support.processes import watching
from tests.support.simulated import here
from tests.support.tiny_models import make_llama
from tests.system.conftest import write_questions

PAGE = (Path(__file__).parents[2] / "docs" / "research.md").read_text()
STRATEGY = ("pyproject.toml", "rootweights/__init__.py", "rootweights/rule.py")
MOST = 40  # lines of a package with a strategy


@dataclass(frozen=True)
class Block:
    """A block of the page that begins with the name of its file in a comment."""

    file: str
    text: str


BLOCKS = [
    Block(re.split(r"[:,\s]", first)[0], f"# {first}\n{rest}")
    for first, rest in re.findall(r"^```(?:toml|python|yaml)\n# ([^\n]+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The files of the page in a folder that Python finds packages in, with the metadata that an installation leaves."""
    for name in {block.file for block in BLOCKS}:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(block.text for block in BLOCKS if block.file == name))
    project = tomllib.loads((tmp_path / "pyproject.toml").read_text())["project"]
    metadata = tmp_path / f"{project['name']}-{project['version']}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    groups = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in offered.items())
        for group, offered in project["entry-points"].items()
    ]
    (metadata / "entry_points.txt").write_text("\n".join(groups))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    importlib.invalidate_caches()
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "rootweights"]:
        del sys.modules[name]


def test_a_strategy_is_a_package_of_few_lines() -> None:
    firsts = [next(block for block in BLOCKS if block.file == name) for name in STRATEGY]
    assert sum(len(block.text.splitlines()) for block in firsts) <= MOST


def test_the_packages_parts_are_found(package: Path) -> None:
    assert "root-weights" in strategies()
    assert "questions" in workload_names()
    with pytest.raises(ExperimentError, match="questions needs data"):
        open_workload(WorkloadOptions(name="questions"))
    with pytest.raises(ExperimentError, match=r"there is no workload 'question'; there are .*questions"):
        open_workload(WorkloadOptions(name="question"))
    experiment = load(package / "teacher.yaml")
    assert run_definition(experiment).strategy == experiment.run["strategy"]
    generator = torch.Generator().manual_seed(0)
    B, A = torch.randn(2, 5, 2, generator=generator), torch.randn(2, 2, 6, generator=generator)
    updates = [Update(A[n], B[n], 1.0, weight, 1.0) for n, weight in enumerate((0.2, 0.8))]
    found = strategy("root-weights").aggregate(
        updates, GlobalFactors(torch.zeros(5, 4), torch.ones(4, 6)), torch.float32
    )
    torch.testing.assert_close(found.factors.B @ found.factors.A, (B[0] @ A[0] + 2 * B[1] @ A[1]) / 3)


def beside(package: Path) -> None:
    """The data and the model that the page's experiment names."""
    make_llama(package / "model")
    (package / "data").mkdir()
    for name, word, count in (("ana", "Paris", 24), ("ben", "bird", 10), ("dora", "tree", 4)):
        write_questions(package / "data" / f"{name}.jsonl", word, count)


def live(made: Cluster, package: Path, ranks: dict[str, int]) -> list[str]:
    """The digests that a live coordinator publishes, with participants of these names and ranks."""
    made.create_run(json.loads((package / "run.json").read_text()))
    started = []
    for name, rank in ranks.items():
        data = package / "data" / f"{name}.jsonl"
        given = ["--rank", str(rank), "--data", str(data), "--heldout-fraction", "0", "--trainer", "shorter-half"]
        made.enroll(name)
        started.append(made.agent(name, "questions", *given))
    with watching(started) as agents:
        assert [agent.finish() for agent in agents] == [0, 0], [agent.log() for agent in agents]
    store = Store(Settings(data_dir=made.folder / "coordinator", database_url=None).url)
    with closing(store), store.reading() as tx:
        return [adapters.get_published(tx, "questions", number).sha256 for number in (1, 2)]


@pytest.mark.slow
def test_the_same_adapters_in_the_simulation_and_on_a_live_coordinator(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside(package)
    monkeypatch.chdir(package)
    exec(compile((package / "make_run.py").read_text(), "make_run.py", "exec"), {})
    results = simulate(load(package / "experiment.yaml"), package / "results", executor=here)
    simulated = results.rounds.set_index("round").adapter_sha256
    ranks = dict(zip(results.participants.participant, results.participants["rank"], strict=True))
    assert sorted(ranks.values()) == [4, 8]
    assert set(results.participants.examples) == {12, 5}, "the shorter half"
    assert set(results.evaluations.on) == {"unseen"}
    with cluster(package / "live") as made:
        assert live(made, package, ranks) == [simulated[1], simulated[2]]
    (package / "other.yaml").write_text((package / "experiment.yaml").read_text().replace("root-weights", "flexlora"))
    other = (
        simulate(load(package / "other.yaml"), package / "other", executor=here)
        .rounds.set_index("round")
        .adapter_sha256
    )
    assert other[1] != simulated[1]
