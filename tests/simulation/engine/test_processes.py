"""Processes of participants that die in the middle of their work, and that end with the simulation. Each is a real one.

A named pipe in the place of the data set holds a process in the middle of a job: who opens it to write knows that one is there.
"""

import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE

import psutil
import pytest

from flexlora_client.errors import DivergedError, Refused
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.problems import Code, Problem
from flexlora_simulation import simulate
from flexlora_simulation.engine.jobs import EvaluationJob
from flexlora_simulation.engine.process_main import sendable
from flexlora_simulation.engine.processes import Processes, share_gpus
from flexlora_simulation.engine.worker_pool import ATTEMPTS
from flexlora_simulation.errors import SimulationError
from flexlora_simulation.experiment import Experiment
from flexlora_simulation.results.results import Results
from tests.support.kit import spec
from tests.support.simulated import folder_with_database, here, tiny_experiment

ROOT = Path(__file__).parents[3]
DEADLINE = 600.0  # seconds after which a test that waits has failed
DRIVER = """
import sys
from pathlib import Path
from flexlora_simulation import simulate
from flexlora_simulation.engine.processes import Processes, share_gpus
from flexlora_simulation.experiment import parse
from tests.simulation.engine.test_processes import hold

def executor(experiment, folder):
    if "hold" in sys.argv:
        hold(experiment)
        print("held", flush=True)
    return Processes(experiment, folder, 2)

simulate(parse(__import__("json").loads(Path(sys.argv[1]).read_text())), Path(sys.argv[2]), executor=executor)
"""


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    return tiny_experiment(tmp_path, run={"training": {"max_steps": 2, "batch_size": 4, "optimizer_state": "keep"}})


def adapters(results: Results) -> list[str]:
    return list(results.rounds.adapter_sha256)


def expected(experiment: Experiment, folder: Path) -> list[str]:
    """The digests without any process."""
    return adapters(simulate(experiment, folder_with_database(folder), executor=here))


def data_file(experiment: Experiment) -> Path:
    return Path(str(experiment.workload.data)) / "train.csv"


def hold(experiment: Experiment) -> None:
    """From now on whoever reads the data set stands still."""
    file = data_file(experiment)
    file.rename(file.with_suffix(".kept"))
    os.mkfifo(file)


@contextmanager
def held(experiment: Experiment) -> Iterator[None]:
    """At least one process stands still in a job; those must be dead at the end of the block, or read an empty file."""
    with data_file(experiment).open("wb"):  # opens once somebody reads
        yield


def release(experiment: Experiment) -> None:
    """Those that begin to read from now on find the data set."""
    file = data_file(experiment)
    file.with_suffix(".kept").replace(file)


def processes_of(driver: int) -> list[psutil.Process]:
    """Those for participants, whatever else it started."""
    children = psutil.Process(driver).children()
    return [child for child in children if any("process_main" in part for part in child.cmdline())]


def kill_all() -> None:
    for process in processes_of(os.getpid()):
        gone = os.pidfd_open(process.pid)
        process.kill()
        assert select.select([gone], [], [], DEADLINE)[0]  # and with it its end of the named pipe
        os.close(gone)


def with_thread(work: Callable[[], None]) -> Callable[[Experiment, Path], Processes]:
    """A process whose first reading stands still, and a thread that does `work` meanwhile."""

    def executor(experiment: Experiment, folder: Path) -> Processes:
        hold(experiment)
        threading.Thread(target=work, daemon=True).start()
        return Processes(experiment, folder, 1)

    return executor


@pytest.mark.slow
def test_a_process_killed_in_a_training_costs_nothing(experiment: Experiment, tmp_path: Path) -> None:
    wanted = expected(experiment, tmp_path / "here")

    def kill_once() -> None:
        with held(experiment):
            release(experiment)
            kill_all()

    assert adapters(simulate(experiment, tmp_path / "run", executor=with_thread(kill_once))) == wanted


@pytest.mark.slow
def test_a_training_that_kills_its_process_each_time_ends_with_a_sentence(
    experiment: Experiment, tmp_path: Path
) -> None:
    def kill_each_time() -> None:
        for _ in range(ATTEMPTS):
            with held(experiment):
                kill_all()

    sentence = (
        r"^training of participant-0000\d in round 1: its process was killed by SIGKILL, as the system does when memory ends, "
        r"3 times\. If memory ended, give fewer processes"
    )
    with pytest.raises(SimulationError, match=sentence):
        simulate(experiment, tmp_path / "run", executor=with_thread(kill_each_time))
    assert processes_of(os.getpid()) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_processes_end_with_the_simulation_and_the_next_one_goes_on(
    experiment: Experiment, tmp_path: Path, number: signal.Signals
) -> None:
    """Also in the middle of a job. A script without a guard against being imported may simulate."""
    wanted = expected(experiment, tmp_path / "here")
    (tmp_path / "experiment.json").write_text(experiment.model_dump_json())
    (tmp_path / "driver.py").write_text(DRIVER)
    command = [sys.executable, *(str(tmp_path / name) for name in ("driver.py", "experiment.json", "run"))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    driver = subprocess.Popen([*command, "hold"], stdout=PIPE, stderr=PIPE, text=True, env=environment)
    assert driver.stdout is not None
    assert driver.stdout.readline() == "held\n"
    with held(experiment):
        processes = processes_of(driver.pid)
        assert processes
        driver.send_signal(number)
        _, told = driver.communicate(timeout=DEADLINE)
        assert psutil.wait_procs(processes, DEADLINE)[1] == []
    release(experiment)
    assert told.count("Traceback") == (1 if number == signal.SIGINT else 0), (
        told
    )  # the script's own, of KeyboardInterrupt
    subprocess.run(command, check=True, env=environment, timeout=DEADLINE)
    assert adapters(Results(tmp_path / "run")) == wanted


@pytest.mark.slow
def test_what_a_job_raises_is_raised_here(experiment: Experiment, tmp_path: Path) -> None:
    processes = Processes(experiment, tmp_path / "run", 1)
    with pytest.raises(KeyError, match="nobody") as raised:
        processes.evaluate(EvaluationJob(RunSpec.model_validate(spec()), 0, 2, tmp_path, "nobody")).result(DEADLINE)
    assert "participant_process.py" in raised.value.__notes__[0]
    processes.close()


def test_an_exception_that_cannot_travel_says_the_same_by_another() -> None:
    diverged = DivergedError("the loss is inf")
    assert sendable(diverged) is diverged
    refused = Refused(Problem(type="about:blank", title="no", status=409, detail="Too late", code=Code.ROUND_CLOSED))
    assert str(sendable(refused)) == f"Refused: {refused}"


def test_processes_take_the_gpus_of_a_machine_in_turn() -> None:
    assert share_gpus("cuda", 3, 2) == ["cuda:0", "cuda:1", "cuda:0"]
    assert share_gpus("cuda", 2, 0) == ["cuda", "cuda"]  # the agent's own sentence says that there is none
    assert share_gpus("cuda:1", 2, 2) == ["cuda:1", "cuda:1"]
    assert share_gpus("cpu", 2, 2) == ["cpu", "cpu"]
