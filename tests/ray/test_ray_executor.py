"""Modules spread over a Ray cluster: the bytes are those of one process, whatever happens to the nodes."""

import hashlib
import io
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
import ray
from sqlalchemy import URL

from flexlora_server.database.transactions import Store
from flexlora_server.errors import AggregationError, LeaseLost
from flexlora_server.worker.aggregate_module import ModuleAggregator
from flexlora_server.worker.aggregate_round import RoundWork, write_aggregate
from flexlora_server.worker.executors.ray_cluster import RayExecutor
from flexlora_shared.messages.runs import ModuleSpec
from tests.ray.conftest import TwoNodes
from tests.support.kit import Clock, served
from tests.support.late import Late, late_round, run_of

R = TypeVar("R")
MODULES = [{"name": f"layers.{i}.proj", "out_features": 512, "in_features": 384} for i in range(32)]
DEADLINE = 120.0  # seconds after which a test that waits has failed

pytestmark = pytest.mark.ray


def large_round(folder: Path, strategy: str = "flexlora-residual", **changes: Any) -> Late:
    """32 modules whose results are too large to travel inside messages: they lie in the store of the node that made them."""
    return late_round(run_of(strategy, modules=MODULES, ranks=[16, 64], **changes), folder)


def result(work: RoundWork, executor: Any = None) -> bytes:
    file = io.BytesIO()
    write_aggregate(work, file, lambda: None, executor)
    return file.getvalue()


def client_server(cluster: TwoNodes) -> tuple[subprocess.Popen[bytes], str]:
    """What answers at ray:// addresses, which `ray start --head` starts by itself."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    where = ["--host", "127.0.0.1", "--port", port, "--address", cluster.address, "--mode", "specific-server"]
    process = subprocess.Popen([sys.executable, "-m", "ray.util.client.server", *where])
    return process, f"ray://127.0.0.1:{port}"


def wait_until(true: Callable[[], bool], deadline: float = DEADLINE) -> None:
    """Look again until it is; fails after so many seconds."""
    pause = threading.Event()
    for _ in range(int(deadline / 0.02)):
        if true():
            return
        pause.wait(0.02)
    raise AssertionError("this did not come to pass")


class Watched:
    """A cluster on which every task passes `gate` first, on its node."""

    def __init__(self, executor: RayExecutor, gate: Callable[[], None]) -> None:
        self._executor, self._gate = executor, gate

    def map_modules(
        self,
        aggregator: ModuleAggregator,
        task: Callable[[ModuleAggregator, ModuleSpec], R],
        check_alive: Callable[[], None],
    ) -> Iterator[tuple[ModuleSpec, R]]:
        return self._executor.map_modules(aggregator, partial(_through, self._gate, task), check_alive)


def _through(
    gate: Callable[[], None],
    task: Callable[[ModuleAggregator, ModuleSpec], R],
    aggregator: ModuleAggregator,
    module: ModuleSpec,
) -> R:
    gate()
    return task(aggregator, module)


def stop_at_the_fourth(victim: str, folder: Path) -> None:
    """On the victim the fourth task stands still, and says so; those before it are done, and their results lie there."""
    node = ray.get_runtime_context().get_node_id()
    (folder / f"on-{node}-{os.urandom(8).hex()}").touch()
    if node == victim and len(list(folder.glob(f"on-{victim}-*"))) > 3:
        (folder / "stands").touch()
        threading.Event().wait()


def test_two_nodes_make_the_bytes_of_one_process(cluster: TwoNodes, tmp_path: Path) -> None:
    """With filters, which go over the modules once more, and late inputs."""
    work = large_round(tmp_path, robust=[{"kind": "norm-clip", "median_factor": 1.0}]).work
    assert result(work, RayExecutor(cluster.address)) == result(work)


def test_a_worker_that_is_no_node_of_the_cluster(cluster: TwoNodes, tmp_path: Path) -> None:
    work = large_round(tmp_path).work
    server, address = client_server(cluster)
    try:
        assert result(work, RayExecutor(address)) == result(work)
    finally:
        ray.shutdown()
        server.terminate()
        server.wait()


@pytest.mark.parametrize("strategy", ["flexlora", "flexlora-residual"])
def test_a_node_killed_in_the_middle_costs_nothing(cluster: TwoNodes, tmp_path: Path, strategy: str) -> None:
    """Half of the cluster dies with a module under way and others done on it: they are made again elsewhere."""
    work = large_round(tmp_path, strategy).work
    marks = tmp_path / "marks"
    marks.mkdir()
    made: list[bytes] = []
    pool = Watched(RayExecutor(cluster.address), partial(stop_at_the_fourth, cluster.worker, marks))
    aggregation = threading.Thread(target=lambda: made.append(result(work, pool)), daemon=True)
    aggregation.start()
    wait_until((marks / "stands").exists)
    assert made == []
    doomed = cluster.worker_processes()
    assert len(doomed) > 1
    for process in doomed:
        os.kill(process.pid, signal.SIGKILL)
    aggregation.join(DEADLINE)
    assert made == [result(work)]
    wait_until(lambda: [node["NodeID"] for node in ray.nodes() if node["Alive"]] == [cluster.head])


def test_a_workers_whole_step_through_the_setting(cluster: TwoNodes, tmp_path: Path) -> None:
    """Leased, aggregated on the cluster, published; the adapter is the one that is made without a cluster."""
    published = set()
    for number, address in enumerate((None, cluster.address)):
        store = Store(URL.create("sqlite", database=str(tmp_path / f"{number}.db")), Clock())
        store.migrate()
        before = signal.getsignal(signal.SIGTERM)
        with served(store, tmp_path / f"data-{number}", Clock(), ray_address=address) as coordinator:
            participant, task, data = coordinator.working(rounds=1)
            participant.upload(task, data)
            assert coordinator.work() == 1
            assert coordinator.round("run", 1)["summary"]["state"] == "PUBLISHED"
            adapter = coordinator.operator.call("GET", "/v1/runs/run/rounds/1/adapter", params={"rank": 8})
            published.add(hashlib.sha256(adapter.content).hexdigest())
            assert adapter.status_code == 200
        assert ray.is_initialized() == (address is not None)
        assert signal.getsignal(signal.SIGTERM) is before
        store.close()
    assert len(published) == 1


def test_a_lost_lease_stops_the_work_while_a_module_is_waited_for(cluster: TwoNodes, tmp_path: Path) -> None:
    work, calls = large_round(tmp_path).work, 0

    def lost() -> None:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise LeaseLost("taken over")

    stuck = Watched(RayExecutor(cluster.address), _stand_still)
    with pytest.raises(LeaseLost):
        write_aggregate(work, io.BytesIO(), lost, stuck)


def _stand_still() -> None:
    threading.Event().wait()


def test_what_a_module_fails_with_is_what_is_raised(cluster: TwoNodes, tmp_path: Path) -> None:
    late = large_round(tmp_path)
    with pytest.raises(AggregationError, match="this node cannot"):
        result(late.work, Watched(RayExecutor(cluster.address), _cannot))


def _cannot() -> None:
    raise AggregationError("this node cannot")


@pytest.mark.filterwarnings("ignore:Ray Client connection timed out:UserWarning")  # beside the error, once a process
def test_a_cluster_that_is_not_there_is_the_places_failure(tmp_path: Path) -> None:
    work = large_round(tmp_path).work
    with pytest.raises(ConnectionError, match="no Ray cluster at FLEXLORA_RAY_ADDRESS=ray:"):
        result(work, RayExecutor("ray://127.0.0.1:1"))
