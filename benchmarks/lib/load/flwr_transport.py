"""flwr's transport in `coordinator`: one SuperLink, one SuperNode, and messages of arrays there and back.

flwr has a virtual environment of its own, made by `scripts/bench`: it pins other versions of what this project needs. The
processes are those of a deployment without TLS: SuperLink and SuperNode, which start the ServerApp's and the ClientApp's. The
app in `flwr_app/` echoes. flwr asks for news every three seconds, so empty messages are timed beside the full ones.
"""

import os
import shutil
import socket
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.lib.load.resource_sampler import SampledServer, sample_resources
from benchmarks.lib.progress import Tell

PROGRAMS = Path(sys.prefix) / "peers" / "flwr" / "bin"
APP = Path(__file__).with_name("flwr_app")
TRIPS = 3
TIMEOUT_S = 300.0  # seconds for all round trips


def flwr(mib: int, tell: Tell, folder: Path) -> Iterator[dict[str, Any]]:
    """The figures, in one line; none where flwr is not there or does not work."""
    if not (PROGRAMS / "flower-superlink").exists():
        tell(f"flwr is not installed in {PROGRAMS.parent}: not measured")
        return
    tell("flwr: round trips through a SuperLink and a SuperNode")
    folder.mkdir()
    port = _free_port()
    environment = _environment(folder, port)
    link = ["flower-superlink", "--insecure", "--disable-runtime-dependency-installation", "--port", str(port)]
    node = ["flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{port}", "--port", str(_free_port())]
    with _running(link, environment, folder) as server, _running(node, environment, folder):
        _listening(port, server)
        with sample_resources(SampledServer(server.pid)) as usage:
            trips = _trips(mib, environment, tell)
    if not trips.get(mib):
        return
    seconds, empty = statistics.median(trips[mib]), statistics.median(trips[0])
    yield {
        "kind": "peer",
        "peer": "flwr",
        "mib": mib,
        "round_trips": len(trips[mib]),
        "seconds": seconds,
        "empty_seconds": empty,
        "mib_per_s": 2 * mib / seconds,
        "mib_per_s_beyond_empty": 2 * mib / (seconds - empty) if seconds > empty else None,
        "idle_mib": usage.idle,
        "peak_mib": usage.peak,
    }


def _trips(mib: int, environment: Mapping[str, str], tell: Tell) -> Mapping[int, list[float]]:
    """Seconds of every round trip by its MiB, as the app prints them."""
    app = Path(environment["FLWR_HOME"]) / "app"
    shutil.copytree(APP, app)
    shutil.copy(APP.parents[1] / "LICENSE", app)  # flwr runs no app without one
    run = [str(PROGRAMS / "flwr"), "run", str(app), "bench", "--stream", "--run-config", f"mib={mib} trips={TRIPS}"]
    try:
        done = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        tell(f"flwr took over {TIMEOUT_S:g} s for {2 * TRIPS} round trips: left out")
        return {}
    found = defaultdict(list)
    for line in done.stdout.splitlines():
        if line.startswith("ROUND-TRIP "):
            _, size, seconds = line.split()
            found[int(size)].append(float(seconds))
    if not found[mib]:
        tell(f"flwr made no round trip; it says: {(done.stdout + done.stderr)[-1000:]}")
    return found


def _environment(folder: Path, port: int) -> dict[str, str]:
    """Its own home with the link's address, its own programs first, and nothing sent to anybody."""
    (folder / "config.toml").write_text(
        f'[superlink]\ndefault = "bench"\n[superlink.bench]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    path = f"{PROGRAMS}{os.pathsep}{os.environ.get('PATH', '')}"
    return inherited | {"FLWR_HOME": str(folder), "FLWR_TELEMETRY_ENABLED": "0", "PATH": path}


@contextmanager
def _running(command: list[str], environment: Mapping[str, str], folder: Path) -> "Iterator[subprocess.Popen[bytes]]":
    with (folder / f"{command[0]}.log").open("wb") as log:
        process = subprocess.Popen([str(PROGRAMS / command[0]), *command[1:]], env=environment, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def _listening(port: int, server: "subprocess.Popen[bytes]") -> None:
    """Return when the port takes connections, or its server has ended."""
    while server.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            continue
        return


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
