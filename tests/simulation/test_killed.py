"""`flexlora-sim run`, killed in earnest and started again, ends with the same bytes, and its processes end with it."""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from flexlora_simulation.results.results import Results
from flexlora_simulation.results.tables import ROWS
from tests.support.simulated import tiny_experiment

pytestmark = pytest.mark.slow
DEADLINE = 600.0  # seconds after which a test that waits has failed
OF_THE_CLOCK = ["wall_seconds", "aggregation_seconds", "cpu_seconds"]
EVENTFUL: dict[str, Any] = {
    "partition": {"participants": 6, "alpha": 0.3},
    "resources": [{"rank": 2}, {"rank": 4, "speed": 0.6}],
    "timing": {"jitter": 0.3, "dropout": 0.2},
    "evaluation": {"on": ["test"]},
    "run": {
        "rounds": 5,
        "over_selection": 1,
        "min_clients": 2,
        "min_updates": 2,
        "late_updates": "next-round",
        "training": {"max_steps": 3, "batch_size": 4, "max_length": 16, "optimizer_state": "keep"},
    },
}


def begin(file: Path, folder: Path) -> "subprocess.Popen[bytes]":
    program = "from flexlora_simulation.cli import main; main()"
    command = [sys.executable, "-c", program, "run", str(file), "--folder", str(folder), "--processes", "2"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def finished(file: Path, folder: Path) -> list[str]:
    assert begin(file, folder).wait(DEADLINE) == 0
    results = Results(folder)
    frames = [results.rounds, results.participants, results.evaluations]
    return [frame.drop(columns=OF_THE_CLOCK, errors="ignore").to_csv() for frame in frames]


def wait_until(true: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(int(DEADLINE / 0.02)):
        if true():
            return
        pause.wait(0.02)
    raise AssertionError("this did not come to pass")


def rows(folder: Path) -> int:
    """Rows of participants so far."""
    return (folder / ROWS).read_bytes().count(b'"participants"') if (folder / ROWS).exists() else 0


def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    file, folder = tmp_path / "experiment.json", tmp_path / "killed"
    experiment = tiny_experiment(tmp_path_factory.mktemp("materials"), **EVENTFUL)
    file.write_text(json.dumps(experiment.model_dump(mode="json")))
    expected = finished(file, tmp_path / "undisturbed")
    for number, more in enumerate((3, 4, 4)):
        before, simulation = rows(folder), begin(file, folder)
        wait_until(lambda simulation=simulation, wanted=before + more: rows(folder) >= wanted)  # type: ignore[misc]
        assert simulation.poll() is None, "it is killed in the middle"
        processes = psutil.Process(simulation.pid).children(recursive=True)
        assert len(processes) == 2
        simulation.kill()
        for process in processes if number % 2 else ():  # else they end by themselves
            process.send_signal(signal.SIGKILL)
        simulation.wait()
        assert not psutil.wait_procs(processes, timeout=DEADLINE)[1]
    assert finished(file, folder) == expected
