"""Runs on a node of a Ray cluster: aggregates one module of a round from the files as that node sees them.

The bytes do not depend on the machine: nodes must have the worker's versions of this program and of PyTorch (checked here), and
processors of one kind (the operator's responsibility).
"""

import platform
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from typing import TypeVar

import torch

from flexlora_server.settings import load_settings
from flexlora_server.storage import open_blobs
from flexlora_server.worker.aggregate_module import ModuleAggregator, RoundWork
from flexlora_shared.messages.runs import ModuleSpec
from flexlora_shared.plugins import FILTER_GROUP, STRATEGY_GROUP, plugin_versions

R = TypeVar("R")


def required_versions() -> str:
    """The versions that must be the same on every node, those of packages with strategies and filters too."""
    plugins = plugin_versions(STRATEGY_GROUP, FILTER_GROUP)
    return ", ".join((f"flexlora {version('flexlora')}", f"torch {torch.__version__}", *plugins))


@dataclass(frozen=True)
class NodeWork:
    """The work of one aggregation, sent to nodes by reference; its files stay open between modules of one `name`.

    blobs_url: the object store that holds the files; None: the node sees the worker's folder at the same path.
    """

    name: str
    versions: str
    blobs_url: str | None
    work: RoundWork


class _OpenRound:
    """The open files of the latest aggregation in this process."""

    name = ""
    aggregator: ModuleAggregator | None = None
    pins = ExitStack()  # keep copies of blobs in the cache until they are opened


def run_on_node(node_work: NodeWork, task: Callable[[ModuleAggregator, ModuleSpec], R], module: ModuleSpec) -> R:
    """The result of `task` for one module.

    Raises:
        OSError: this node does not fit the worker, or cannot read the files.
    """
    if node_work.versions != required_versions():
        raise OSError(
            f"the Ray node {platform.node()} runs {required_versions()}, the worker {node_work.versions}: install the same"
        )
    torch.set_num_threads(1)  # the bytes depend on the number of LAPACK threads
    try:
        if _OpenRound.aggregator is None or _OpenRound.name != node_work.name:
            _OpenRound.pins.close()
            _OpenRound.aggregator, _OpenRound.name = ModuleAggregator(_with_local_paths(node_work)), node_work.name
        return task(_OpenRound.aggregator, module)
    except FileNotFoundError as error:  # the worker has found the file: it is missing only here
        raise OSError(
            f"the Ray node {platform.node()} lacks a file of the round ({error}): nodes need the data folder at the worker's "
            "path, or an object store (FLEXLORA_BLOBS_URL)"
        ) from error


def _with_local_paths(node_work: NodeWork) -> RoundWork:
    """The work with the paths of this node's copies of the blobs, where they come from an object store."""
    if node_work.blobs_url is None:
        return node_work.work
    settings = load_settings()
    if settings.blobs_url != node_work.blobs_url:
        raise OSError(
            f"the Ray node {platform.node()} has FLEXLORA_BLOBS_URL={settings.blobs_url}, the worker {node_work.blobs_url}: "
            "start Ray with the worker's settings of the object store"
        )
    pin = _OpenRound.pins.enter_context(open_blobs(settings).pinned())
    return node_work.work.with_paths(lambda path: pin(path.name))
