"""Runs that are kept in a file: what is done is not done again."""

import subprocess
import sys
import threading
from pathlib import Path
from subprocess import PIPE

import psutil
import pytest

from flexlora_simulation.evidence.resumable import Done, Job, runner


def twice(job: Job) -> Done:
    """The work of a process."""
    if job["n"] < 0:
        raise ValueError("negative")
    return {"twice": 2 * job["n"]}


def stand_still(job: Job) -> Done:
    """The work of a process that says that it began."""
    print(psutil.Process().pid, flush=True)
    threading.Event().wait()
    return {}


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    told: list[str] = []

    for wanted in ([1, 2], [2, 3]):
        with runner(twice, 1, tmp_path / "results.jsonl", told.append) as run_them:
            assert run_them([{"n": n} for n in wanted]) == [{"n": n, "twice": 2 * n} for n in wanted]
    assert told == ["1/2 1", "2/2 2", "1/1 3"]


def test_a_line_that_was_cut_off_is_done_again_and_spoils_nothing(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    results.write_text('{"n": 1, "twice": 2}\n{"n": 2, "twi')
    told: list[str] = []
    for _ in range(2):
        with runner(twice, 1, results, told.append) as run_them:
            assert run_them([{"n": 1}, {"n": 2}]) == [{"n": 1, "twice": 2}, {"n": 2, "twice": 4}]
    assert told == ["1/1 2"]


@pytest.mark.slow
def test_a_run_that_fails_ends_them_all_and_what_was_done_is_kept(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    with runner(twice, 2, results, lambda told: None) as run_them:
        run_them([{"n": 1}])
        with pytest.raises(ValueError, match="negative"):
            run_them([{"n": -1}, {"n": -2}])
    assert results.read_text() == '{"n": 1, "twice": 2}\n'


@pytest.mark.slow
def test_the_processes_end_with_the_one_that_began_them_also_in_the_middle_of_a_run() -> None:
    name = "tests.simulation.evidence.test_resumable"
    program = f"""
from {name} import runner, stand_still
if __name__ == "__main__":
    with runner(stand_still, 2, None, print) as run_them:
        run_them([{{"n": 1}}, {{"n": 2}}])
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=PIPE, text=True) as driver:
        assert driver.stdout is not None
        processes = [psutil.Process(int(driver.stdout.readline())) for _ in range(2)]
        driver.kill()
        assert psutil.wait_procs(processes, 120)[1] == []
