"""What a machine of a cluster does, without Ray: it trains as a process here does, keeps nothing, and refuses to differ."""

import importlib
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from flexlora_simulation import simulate
from flexlora_simulation.engine.jobs import EvaluationJob, TrainingJob
from flexlora_simulation.engine.ray_node import Expected, ParticipantNode, kept_folder, read_files, write_files
from flexlora_simulation.errors import SimulationError
from flexlora_simulation.experiment import Experiment
from flexlora_simulation.workloads.registry import open_workload
from tests.support.simulated import Here, folder_with_database, here, tiny_experiment

KEEP = {"training": {"max_steps": 1, "batch_size": 4, "max_length": 16, "optimizer_state": "keep"}}


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    return tiny_experiment(tmp_path_factory.mktemp("materials"), run=KEEP)


@pytest.fixture(scope="module")
def expected(experiment: Experiment) -> Expected:
    workload = open_workload(experiment.workload)
    return Expected.of(workload, workload.corpus())


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where nodes have their files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


@pytest.fixture(scope="module")
def done(experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Here:
    """A federation that was trained in this process: its jobs, with their files."""
    made = list[Here]()

    def executor(given: Experiment, folder: Path) -> Here:
        made.append(here(given, folder))
        return made[0]

    simulate(experiment, folder_with_database(tmp_path_factory.mktemp("run") / "run"), executor=executor)
    return made[0]


def test_a_machine_gives_the_bytes_of_a_process_here_and_keeps_nothing(
    experiment: Experiment, done: Here, temporary: Path, tmp_path: Path
) -> None:
    """Another machine in each round: the optimizer's state comes along."""
    alone, kept = here(experiment, tmp_path / "process"), dict[str, dict[str, bytes]]()
    for job in done.trained:
        node, content, before = (
            ParticipantNode(experiment, "cpu"),
            job.slice.read_bytes(),
            kept.get(job.participant, {}),
        )
        sent, wanted = node.train(job, content, before), alone.train(job).result()
        assert sent.content == wanted.file.read_bytes()
        assert sent.update.upload.sha256 == wanted.upload.sha256
        assert list(temporary.iterdir()) == []
        kept[job.participant] = sent.kept
        if before:
            assert node.train(job, content, {}).content != sent.content
            break
    else:
        pytest.fail("nobody trained in both rounds")
    evaluation = EvaluationJob(job.task.spec, 0, job.task.rank, job.slice, "test")
    assert node.evaluate(evaluation, job.slice.read_bytes()).metrics.keys() >= {"loss", "accuracy"}
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda one: replace(one, versions="torch 1.0"),
            r"runs .*torch 2.*, the simulation torch 1\.0: install the same",
        ),
        (lambda one: replace(one, data="0"), "has other data than the simulation at the same path"),
        (lambda one: replace(one, base=replace(one.base, path="/b")), "has its base model at .*, the simulation at /b"),
    ],
)
def test_a_machine_refuses_what_it_has_otherwise(
    experiment: Experiment, expected: Expected, change: Callable[[Expected], Expected], sentence: str
) -> None:
    node = ParticipantNode(experiment, "cpu")
    node.check(expected)
    with pytest.raises(SimulationError, match=f"the Ray node .* {sentence}"):
        node.check(change(expected))


def test_a_machine_without_the_data_says_what_it_needs(experiment: Experiment, expected: Expected) -> None:
    elsewhere = experiment.model_copy(update={"workload": experiment.workload.model_copy(update={"data": "/nowhere"})})
    with pytest.raises(SimulationError, match=r"cannot read the workload: /nowhere.* must lie on every machine"):
        ParticipantNode(elsewhere, "cpu").check(expected)


def test_a_machine_with_another_base_model_refuses_to_train(experiment: Experiment, done: Here) -> None:
    job = done.trained[0]
    model = job.task.spec.model.model_copy(update={"id": "/nowhere"})
    task = job.task.model_copy(update={"spec": job.task.spec.model_copy(update={"model": model})})
    with pytest.raises(SimulationError, match=r"the Ray node .* cannot use the base model: "):
        ParticipantNode(experiment, "cpu").train(TrainingJob(job.participant, task, job.slice), b"", {})


def test_the_digest_tells_examples_and_what_they_are_dealt_by(experiment: Experiment, expected: Expected) -> None:
    workload = open_workload(experiment.workload)
    corpus = workload.corpus()
    first, *others = corpus.train
    changed = (
        replace(corpus, train=[replace(first, group="g"), *others]),
        replace(corpus, train=[*others, first]),
        replace(corpus, train=[*corpus.train, corpus.test[0]], test=corpus.test[1:]),
    )
    digests = {Expected.of(workload, each).data for each in (corpus, *changed)}
    assert expected.data in digests
    assert len(digests) == 4


def test_files_that_are_kept_replace_those_that_were(tmp_path: Path) -> None:
    write_files(tmp_path / "folder", {})
    assert read_files(tmp_path / "folder") == {}
    write_files(tmp_path / "folder", {"one": b"1", "two": b"2"})
    write_files(tmp_path / "folder", {"two": b"2", "three": b"3"})
    assert read_files(tmp_path / "folder") == {"two": b"2", "three": b"3"}


def test_what_a_process_keeps_is_found(done: Here, tmp_path: Path, experiment: Experiment) -> None:
    job = done.trained[0]
    here(experiment, tmp_path).train(job).result()
    assert list(read_files(kept_folder(tmp_path, job))) == ["round-000001.pt"]


def test_a_cluster_is_asked_for_but_ray_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "flexlora_simulation.engine.ray_cluster", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SimulationError, match=r"ray is not installed here: pip install 'flexlora\[simulation,ray\]'"):
        importlib.import_module("flexlora_simulation.engine.ray_cluster")
