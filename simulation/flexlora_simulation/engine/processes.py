"""The default executor: processes of one thread each on this machine.

They are programs of their own (`process_main`) rather than `multiprocessing`'s, which would run the caller's script once more in
each: `simulate` can be called from a script without a guard, and from a notebook.
"""

import os
import signal
import subprocess
import sys
import threading
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from flexlora_simulation.engine.worker_pool import Job, Result, WorkerDied, WorkerPool
from flexlora_simulation.experiment import Experiment

ADVICE = (
    "If memory ended, give fewer processes, a smaller run.training.batch_size or max_length, or a smaller base model; the same "
    "command then goes on where it stopped"
)


class Processes(WorkerPool):
    """An `Executor`: so many processes. With device "cuda" they take the machine's GPUs in turn."""

    def __init__(self, experiment: Experiment, folder: Path, processes: int, device: str = "cpu") -> None:
        devices = share_gpus(device, processes, torch.cuda.device_count())
        super().__init__([_Process(experiment, folder, each) for each in devices], ADVICE)


def share_gpus(device: str, processes: int, gpus: int) -> list[str]:
    """The device of each process: the machine's GPUs in turn, where it is "cuda" and there are any."""
    return [f"cuda:{number % gpus}" if device == "cuda" and gpus else device for number in range(processes)]


class _Process:
    """A `Worker`: one process at a time, reached through a pipe; it ends when the pipe does."""

    def __init__(self, experiment: Experiment, folder: Path, device: str) -> None:
        self._setting = (experiment, folder, device)
        self._lock = threading.Lock()
        self._stopped = False
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """See `Worker`."""
        with self._lock:
            if self._stopped:
                raise WorkerDied("was stopped")
            self._pipe, theirs = Pipe()
            with theirs:
                self._process = _launch(theirs)
        self._ask(self._setting)

    def run(self, job: Job) -> Result:
        """See `Worker`."""
        answer = self._ask(job)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def stop(self) -> None:
        """See `Worker`."""
        with self._lock:
            self._stopped = True
            if self._process is not None:
                self._process.kill()
                self._process.wait()

    def _ask(self, message: object) -> Result | Exception:
        """Send it, and wait for what comes back. Raises: WorkerDied."""
        try:
            self._pipe.send(message)
            answer: Result | Exception = self._pipe.recv()
        except (EOFError, OSError) as error:
            self._pipe.close()
            assert self._process is not None
            raise WorkerDied(_ending(self._process.wait())) from error
        return answer


def _launch(pipe: Connection) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "flexlora_simulation.engine.process_main", str(pipe.fileno())],
        stdin=subprocess.DEVNULL,
        pass_fds=[pipe.fileno()],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,  # Ctrl-C reaches this process alone, which ends the others
    )


def _ending(status: int) -> str:
    """How a process ended, by its exit status."""
    if status >= 0:
        return f"ended with exit status {status}"
    name = signal.Signals(-status).name
    return f"was killed by {name}" + (", as the system does when memory ends" if name == "SIGKILL" else "")
