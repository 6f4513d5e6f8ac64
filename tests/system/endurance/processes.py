"""Processes that cost nothing to start again, so that many kills fit into an hour and meet programs at work, not importing.

A warm start forks a process that has imported the whole product already; a cold start runs the console script. Either way it is
a process of its own, running the command's own `main`, that `kill -9` ends at once.
"""

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from demo.cluster import ENVIRONMENT
from tests.support.processes import PATIENCE

ROOT = Path(__file__).parents[3]
MAINS = {"flexlora-server": "flexlora_server.cli", "flexlora-client": "flexlora_client.cli"}
PRELOADED = [*MAINS.values(), "flexlora_client.agent.assemble", "tests.system.endurance.trainer", __name__]
GONE = 30.0  # seconds in which a killed process is gone

_forks = get_context("forkserver")
_forks.set_forkserver_preload(PRELOADED)


@dataclass
class Program:
    """A command that is started again and again; each start writes files of its own: its output and its log."""

    name: str
    command: Sequence[str]  # of the console script and its arguments
    environment: Mapping[str, str]
    folder: Path
    starts: int = 0
    process: "subprocess.Popen[bytes] | ForkServerProcess | None" = field(default=None, repr=False)

    @property
    def output(self) -> Path:
        """Standard output of the latest start."""
        return self.folder / f"{self.name}-{self.starts}.out"

    @property
    def outputs(self) -> list[Path]:
        """Standard output of every start."""
        return [self.folder / f"{self.name}-{number}.out" for number in range(1, self.starts + 1)]

    @property
    def log(self) -> Path:
        """What every start wrote for people."""
        return self.folder / f"{self.name}.log"

    def start(self, *, cold: bool = False) -> None:
        """Begin anew; returns at once."""
        self.starts += 1
        self.output.touch()
        self.process = self._cold() if cold else self._warm()

    def _warm(self) -> ForkServerProcess:
        given = (list(self.command), dict(self.environment), str(self.output), str(self.log))
        process = _forks.Process(target=_become, args=given, name=self.name)
        process.start()
        return process

    def _cold(self) -> "subprocess.Popen[bytes]":
        script = Path(sys.executable).with_name(self.command[0])
        paths = [str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        environment = {**os.environ, **ENVIRONMENT, **self.environment, "PYTHONPATH": os.pathsep.join(paths)}
        with self.output.open("ab") as output, self.log.open("ab") as log:
            command = [str(script), *self.command[1:]]
            return subprocess.Popen(command, env=environment, stdout=output, stderr=log, stdin=subprocess.DEVNULL)

    def ended(self) -> int | None:
        """The exit code of a process that has ended; None while it runs."""
        assert self.process is not None
        return self.process.poll() if isinstance(self.process, subprocess.Popen) else self.process.exitcode

    @contextmanager
    def sentinel(self) -> Iterator[int]:
        """A descriptor that is ready for reading once the process has ended."""
        assert self.process is not None
        if not isinstance(self.process, subprocess.Popen):
            yield self.process.sentinel
            return
        descriptor = os.pidfd_open(self.process.pid)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def kill(self) -> None:
        """`kill -9`, and wait until it is gone."""
        if self.process is None:
            return
        self.process.kill()
        if isinstance(self.process, subprocess.Popen):
            self.process.wait(GONE)
        else:
            self.process.join(GONE)


def wait_for_an_end(programs: Sequence[Program]) -> None:
    """Return when one of these has ended. Raises: TimeoutError."""
    with ExitStack() as opened:
        if not wait([opened.enter_context(one.sentinel()) for one in programs], PATIENCE):
            raise TimeoutError(f"not within {PATIENCE:.0f} s: one of {[one.name for one in programs]} ends")


def _become(command: list[str], environment: dict[str, str], output: str, log: str) -> None:
    """In the forked process: be the console script."""
    os.environ.update(ENVIRONMENT | environment)
    for path, descriptor in ((output, 1), (log, 2)):
        with Path(path).open("ab") as file:
            os.dup2(file.fileno(), descriptor)
    sys.argv = command
    importlib.import_module(MAINS[command[0]]).main()
