"""The executor on many machines: a Ray cluster whose actors are processes for participants.

Slices go to the machines as objects, once each, and updates come back as bytes that are written here: the experiment's folder is
as if all had been trained here, so a simulation that was stopped goes on with or without a cluster.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from flexlora_client.errors import BadInput
from flexlora_client.files import make_folder, write_whole
from flexlora_simulation.engine.jobs import TrainedUpdate, TrainingJob
from flexlora_simulation.engine.ray_node import (
    Expected,
    ParticipantNode,
    SentUpdate,
    kept_folder,
    read_files,
    write_files,
)
from flexlora_simulation.engine.worker_pool import Job, Result, WorkerDied, WorkerPool, log
from flexlora_simulation.errors import ExperimentError, SimulationError
from flexlora_simulation.experiment import Experiment
from flexlora_simulation.workloads.registry import open_workload

try:
    import ray

    from flexlora_server.worker.executors.ray_cluster import connect
except ModuleNotFoundError as missing:
    raise SimulationError(f"{missing.name} is not installed here: pip install 'flexlora[simulation,ray]'") from missing

SLICES = 64  # kept in the cluster: of a few rounds, at all ranks
PATIENCE_S = 60.0  # until it is told that an actor does not come
ADVICE = (
    "If memory ended, let fewer processes share a machine (ray start --num-cpus), or give a smaller run.training.batch_size or "
    "max_length; the same command then goes on where it stopped"
)


class RayCluster(WorkerPool):
    """An `Executor`.

    address: `auto`, HOST:PORT of a cluster that this machine is a node of, or ray://HOST:PORT of any.
    gpus: the share of a GPU that each process takes, 0.25 for four to a GPU; 0: they compute on processors, one each.
    actors: how many processes; None: as many as the cluster has room for now. More than that wait for machines that join.
    """

    node: type[ParticipantNode] = ParticipantNode

    def __init__(
        self, experiment: Experiment, folder: Path, address: str, *, gpus: float = 0.0, actors: int | None = None
    ) -> None:
        """Raises: SimulationError, where there is no such cluster, or no room in it."""
        _check_paths(experiment)
        workload = open_workload(experiment.workload)
        expected = Expected.of(workload, workload.corpus())
        self._began = not ray.is_initialized()
        try:
            connect(address, f"--ray {address}", "leave it out to run on this machine alone")
        except ConnectionError as error:
            raise SimulationError(str(error)) from error
        remote = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=0)(self.node)
        slices = _Slices()

        def actor() -> Any:
            return remote.remote(experiment, "cuda" if gpus else "cpu")

        count = _room(gpus) if actors is None else actors
        super().__init__([_Actor(actor, expected, slices, folder) for _ in range(count)], ADVICE)

    def close(self) -> None:
        """Stop at once: jobs that are not done are dropped."""
        super().close()
        if self._began:
            ray.shutdown()


class _Slices:
    """The contents of slices in the cluster's object store, by file."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._references = OrderedDict[Path, Any]()

    def put(self, path: Path) -> Any:
        with self._lock:
            if path not in self._references:
                self._references[path] = ray.put(path.read_bytes())
            self._references.move_to_end(path)
            if len(self._references) > SLICES:
                self._references.popitem(last=False)
            return self._references[path]


class _Actor:
    """A `Worker`: one actor at a time, on whatever machine has room for it."""

    def __init__(self, make: Callable[[], Any], expected: Expected, slices: _Slices, folder: Path) -> None:
        self._make, self._expected, self._slices, self._folder = make, expected, slices, folder
        self._lock = threading.Lock()
        self._stopped = False
        self._actor: Any = None

    def start(self) -> None:
        """See `Worker`."""
        with self._lock:
            if self._stopped:
                raise WorkerDied("was stopped")
            self._kill()  # one that cannot be reached may live
            self._actor = self._make()
        ready = self._actor.check.remote(self._expected)
        if not ray.wait([ready], timeout=PATIENCE_S)[0]:
            log.warning(
                "a process on the cluster is not ready yet: it reads its data, or waits for a machine with room"
            )
        _get(ready)

    def run(self, job: Job) -> Result:
        """See `Worker`."""
        slice = self._slices.put(job.slice)
        if not isinstance(job, TrainingJob):
            evaluated: Result = _get(self._actor.evaluate.remote(job, slice))
            return evaluated
        kept = read_files(kept_folder(self._folder, job))
        return self._keep(job, _get(self._actor.train.remote(job, slice, kept)))

    def stop(self) -> None:
        """See `Worker`."""
        with self._lock:
            self._stopped = True
            self._kill()

    def _kill(self) -> None:
        if self._actor is not None:
            with suppress(Exception):  # the cluster may be gone
                ray.kill(self._actor)

    def _keep(self, job: TrainingJob, sent: SentUpdate) -> TrainedUpdate:
        """The update with its file here, and what the participant keeps beside it."""
        file = self._folder / sent.update.file
        try:
            make_folder(file.parent)
            write_whole(file, sent.content)
            write_files(kept_folder(self._folder, job), sent.kept)
        except BadInput as error:  # of this machine, and not of the participant
            raise SimulationError(f"{error}: free space there, and give the same command again") from error
        return replace(sent.update, file=file)


def _get(reference: Any) -> Any:
    """The result. Raises: WorkerDied; what was raised there."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, Exception):
            raise error.cause from error
        raise
    except ray.exceptions.RayError as error:
        first = str(error).strip().partition("\n")[0]
        raise WorkerDied(f"on the cluster ended ({type(error).__name__}: {first})") from error
    except ConnectionError as error:
        raise SimulationError(
            f"the connection to the Ray cluster is lost ({error}): give the same command again, and it goes on"
        ) from error


def _room(gpus: float) -> int:
    """How many processes the cluster has room for. Raises: SimulationError, for none."""
    there = ray.cluster_resources()
    room = int(there.get("CPU", 0))
    if gpus:
        room = min(room, int(there.get("GPU", 0) / gpus))
    if not room:
        raise SimulationError(
            f"the Ray cluster has {there.get('CPU', 0):g} processors and {there.get('GPU', 0):g} GPUs, which is no room for a "
            f"process that takes a processor and {gpus:g} of a GPU"
        )
    return room


def _check_paths(experiment: Experiment) -> None:
    for name in ("data", "model"):
        given = getattr(experiment.workload, name)
        if given is not None and not Path(given).is_absolute() and Path(given).exists():
            raise ExperimentError(
                f"workload.{name}: give {given} as an absolute path, which is the same on every machine"
            )
