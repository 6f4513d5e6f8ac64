"""What runs on a node of a Ray cluster: one module of a round, from the files as that node sees them.

Which machine made a module does not show in the bytes: nodes must have the worker's versions of this program and of PyTorch
(that is checked), and processors of one kind (that is the operator's to see to).
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
from flexlora_server.worker.aggregate_module import Opened, Work
from flexlora_shared.messages.runs import ModuleSpec

R = TypeVar("R")


def versions() -> str:
    """What must be the same on every node."""
    return f"flexlora {version('flexlora')}, torch {torch.__version__}"


@dataclass(frozen=True)
class Sent:
    """What a node gets of an aggregation, by reference: its files stay open between modules of one `name`.

    blobs_url: the object store that holds the files; None: the node sees the worker's folder at the same path.
    """

    name: str
    versions: str
    blobs_url: str | None
    work: Work


class _Kept:
    """The files of the aggregation that this process worked for last."""

    name = ""
    opened: Opened | None = None
    pins = ExitStack()  # copies of blobs, which the cache may not evict before they are opened


def on_node(sent: Sent, task: Callable[[Opened, ModuleSpec], R], module: ModuleSpec) -> R:
    """One module's part of an aggregation.

    Raises:
        OSError: this node does not fit the worker, or cannot read the files.
    """
    if sent.versions != versions():
        raise OSError(f"the Ray node {platform.node()} runs {versions()}, the worker {sent.versions}: install the same")
    torch.set_num_threads(1)  # one LAPACK thread a task: what its bytes depend on
    try:
        if _Kept.opened is None or _Kept.name != sent.name:
            _Kept.pins.close()
            _Kept.opened, _Kept.name = Opened(_located(sent)), sent.name
        return task(_Kept.opened, module)
    except FileNotFoundError as error:  # the worker has found it: it is missing here
        raise OSError(
            f"the Ray node {platform.node()} lacks a file of the round ({error}): nodes need the data folder at the worker's "
            "path, or an object store (FLEXLORA_BLOBS_URL)"
        ) from error


def _located(sent: Sent) -> Work:
    """The work on this node's own copies of the blobs, where they come from an object store."""
    if sent.blobs_url is None:
        return sent.work
    settings = load_settings()
    if settings.blobs_url != sent.blobs_url:
        raise OSError(
            f"the Ray node {platform.node()} has FLEXLORA_BLOBS_URL={settings.blobs_url}, the worker {sent.blobs_url}: start "
            "Ray with the worker's settings of the object store"
        )
    pin = _Kept.pins.enter_context(open_blobs(settings).pinned())
    return sent.work.located(lambda path: pin(path.name))
