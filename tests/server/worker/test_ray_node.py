"""What a node of a Ray cluster does, without Ray: it finds the files where it is, and refuses what it cannot do alike."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flexlora_server.errors import StartupError
from flexlora_server.settings import Settings
from flexlora_server.storage import open_blobs
from flexlora_server.worker.aggregate_module import ModuleAggregator, RoundWork
from flexlora_server.worker.executors import ray_node
from flexlora_server.worker.executors.base import ThreadExecutor, create_executor
from flexlora_server.worker.executors.ray_node import NodeWork, required_versions, run_on_node
from tests.support.late import Late, late_round, run_of

URL = "s3://bucket/prefix"


@pytest.fixture
def late(tmp_path: Path) -> Late:
    return late_round(run_of("flexlora-residual"), tmp_path)


def sent(work: RoundWork, name: str = "one", blobs_url: str | None = None) -> NodeWork:
    return NodeWork(name, required_versions(), blobs_url, work)


def test_a_shared_folder(late: Late) -> None:
    module = late.run.modules[0]
    found = run_on_node(sent(late.work), ModuleAggregator.geometry, module)
    assert torch.equal(found.inner, ModuleAggregator(late.work).geometry(module).inner)


def test_files_stay_open_within_one_aggregation_alone(late: Late, tmp_path: Path) -> None:
    module = late.run.modules[0]
    before = run_on_node(sent(late.work, "first"), ModuleAggregator.geometry, module)
    fewer = replace(late.work, inputs=late.inputs[:2])
    assert torch.equal(run_on_node(sent(fewer, "first"), ModuleAggregator.geometry, module).inner, before.inner)
    assert len(run_on_node(sent(fewer, "second"), ModuleAggregator.geometry, module).inner) == 2


def test_an_object_store(late: Late, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker's paths mean nothing here: the files' names are what they are found by, those of older bases too."""
    here, names = open_blobs(Settings(data_dir=tmp_path / "node")), dict[Path, Path]()
    elsewhere = late.work.with_paths(lambda path: names.setdefault(path, Path("/elsewhere") / here.add(path).sha256))
    monkeypatch.setenv("FLEXLORA_BLOBS_URL", URL)
    monkeypatch.setattr(ray_node, "open_blobs", lambda settings: here)
    module = late.run.modules[1]
    found = run_on_node(sent(elsewhere, "stored", URL), ModuleAggregator.geometry, module)
    assert torch.equal(found.inner, ModuleAggregator(late.work).geometry(module).inner)


def test_a_node_with_other_settings_refuses(late: Late, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLEXLORA_BLOBS_URL", raising=False)
    with pytest.raises(OSError, match="has FLEXLORA_BLOBS_URL=None, the worker s3://bucket/prefix: start Ray with"):
        run_on_node(sent(late.work, "other", URL), ModuleAggregator.geometry, late.run.modules[0])


def test_a_node_that_lacks_the_folder_says_what_it_needs(late: Late) -> None:
    gone = late.work.with_paths(lambda path: Path("/nowhere") / path.name)
    with pytest.raises(OSError, match=r"lacks a file of the round .* nodes need the data folder") as refused:
        run_on_node(sent(gone, "gone"), ModuleAggregator.geometry, late.run.modules[0])
    assert not isinstance(
        refused.value, FileNotFoundError
    )  # which would be a missing input, and nobody's but the round's


def test_another_version_refuses(late: Late) -> None:
    older = NodeWork("older", "flexlora 0.0.1, torch 1.0", None, late.work)
    with pytest.raises(OSError, match=r"the worker flexlora 0.0.1, torch 1.0: install the same"):
        run_on_node(older, ModuleAggregator.geometry, late.run.modules[0])


def test_ray_is_asked_for_but_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "flexlora_server.worker.executors.ray_cluster", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(StartupError, match="FLEXLORA_RAY_ADDRESS is set, but ray is not installed here: pip install"):
        create_executor(Settings(ray_address="auto"))
    assert isinstance(create_executor(Settings(ray_address=None)), ThreadExecutor)
