"""A Ray cluster of two nodes on this machine, one processor each; nothing here is collected where Ray is not installed."""

import importlib.util
from collections.abc import Iterator
from typing import Any

import pytest

collect_ignore_glob = [] if importlib.util.find_spec("ray") else ["test_*.py"]
SMALL = {"num_cpus": 1, "object_store_memory": 128 << 20, "include_dashboard": False}


@pytest.fixture
def cluster() -> Iterator[Any]:
    """`add_node(**SMALL)` adds one more; this process is no part of it until a pool connects."""
    import ray
    from ray.cluster_utils import Cluster

    started = Cluster(initialize_head=True, head_node_args=SMALL)
    started.add_node(**SMALL)
    yield started
    ray.shutdown()
    started.shutdown()
