"""A coordinator and its agents as real processes on one machine: for the demo, the benchmarks and the end-to-end tests."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# One thread a process: on a shared machine two OpenMP threads were 20 times slower than one.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True)
class Agent:
    """An agent's process, whose standard output is JSON events, and its home folder."""

    name: str
    home: Path
    process: "subprocess.Popen[bytes]"


@dataclass
class Cluster:
    """A running coordinator; `start` begins it again in its folder, on its port, after it was stopped or killed."""

    folder: Path
    settings: Mapping[str, str]
    url: str = ""
    process: "subprocess.Popen[str] | None" = None

    @property
    def operator_key(self) -> str:
        """The key the coordinator generated at its first start."""
        return (self.folder / "coordinator" / "operator.key").read_text().strip()

    def server_environment(self, **more: str) -> dict[str, str]:
        """The environment of the coordinator's commands."""
        return {
            **os.environ,
            **ENVIRONMENT,
            "FLEXLORA_DATA_DIR": str(self.folder / "coordinator"),
            **self.settings,
            **more,
        }

    def migrate(self) -> None:
        """Create the database."""
        command = [str(Path(sys.executable).with_name("flexlora-server")), "migrate"]
        subprocess.run(command, check=True, env=self.server_environment(), stdout=subprocess.DEVNULL)

    def start(self) -> None:
        """Start the coordinator; returns when its address is known."""
        port = self.url.rpartition(":")[2] or "0"
        with (self.folder / "coordinator.log").open("a") as log:
            self.process = subprocess.Popen(
                [str(Path(sys.executable).with_name("flexlora-server")), "serve"],
                env=self.server_environment(FLEXLORA_PORT=port),
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if "http://" not in line:
            raise RuntimeError(f"the coordinator did not start; see {self.folder / 'coordinator.log'}")
        self.url = line.split()[-1]

    def stop(self) -> None:
        """Send SIGTERM to the coordinator and wait for its end."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """`kill -9` the coordinator; its workers end by themselves."""
        self._end(signal.SIGKILL)

    def _end(self, by: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(by)  # does nothing to a process that has ended
            self.process.wait()
            assert self.process.stdout is not None
            self.process.stdout.close()

    def client(self, *arguments: str, home: Path | None = None) -> str:
        """One command of the agent's command line; its standard output."""
        done = subprocess.run(
            client_command(*arguments),
            env=self._client_environment(home or self.folder / "operator")
            | {"FLEXLORA_OPERATOR_KEY": self.operator_key},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"flexlora-client {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def _client_environment(self, home: Path) -> dict[str, str]:
        return {**os.environ, **ENVIRONMENT, "FLEXLORA_URL": self.url, "FLEXLORA_HOME": str(home)}

    def create_run(self, spec: Mapping[str, Any]) -> None:
        """Define and start a run."""
        path = self.folder / f"{spec['name']}.json"
        path.write_text(json.dumps(spec, indent=2))
        self.client("runs", "create", str(path))
        self.client("runs", "start", str(spec["name"]))

    def enroll(self, name: str) -> Path:
        """Enroll a participant; the home of its credentials."""
        home = self.folder / name
        token = json.loads(self.client("tokens", "create", "--json"))["token"]
        self.client("enroll", self.url, "--token", token, "--name", name, home=home)
        return home

    def agent(self, name: str, *arguments: str) -> Agent:
        """Start an enrolled participant's agent; `arguments` are those of `flexlora-client run`."""
        home = self.folder / name
        with (home / "agent.log").open("ab") as log:
            process = subprocess.Popen(
                client_command("run", *arguments, "--json"),
                env=self._client_environment(home),
                stdout=subprocess.PIPE,
                stderr=log,
            )
        return Agent(name, home, process)


def client_command(*arguments: str) -> list[str]:
    """`flexlora-client` of this environment."""
    return [str(Path(sys.executable).with_name("flexlora-client")), *arguments]


@contextmanager
def cluster(folder: Path, **settings: str) -> Iterator[Cluster]:
    """A migrated, running coordinator in `folder`; stopped on leaving. `settings` are FLEXLORA_… variables."""
    folder.mkdir(parents=True, exist_ok=True)
    running = Cluster(folder, settings)
    running.migrate()
    with ExitStack() as stack:
        stack.callback(running.stop)
        running.start()
        yield running


@contextmanager
def agents(started: Sequence[Agent]) -> Iterator[Sequence[Agent]]:
    """The agents' processes, ended on leaving where they have not ended themselves."""
    try:
        yield started
    finally:
        for agent in started:
            if agent.process.poll() is None:
                agent.process.terminate()
        for agent in started:
            agent.process.wait()
