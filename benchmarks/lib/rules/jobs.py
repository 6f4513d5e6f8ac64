"""Runs that do not depend on each other, in processes of one thread each; what is done is kept in a file and not done again."""

import json
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from benchmarks.lib.progress import Tell

Job = Mapping[str, Any]  # what tells one run from another, of JSON's types
Done = dict[str, Any]  # the job with what came out of it


def run_all(
    jobs: Sequence[Job], work: Callable[[Job], Done], processes: int, results: Path | None, tell: Tell
) -> list[Done]:
    """`work` of each job merged into the job, in the order of the jobs.

    results: a file of JSON lines; jobs that it has are taken from there, and the others are added as they end, so that what
    was broken off goes on. `work` is a function of a module: it is sent to the processes by name.
    """
    names = {_key(job) for job in jobs}
    done = {
        key: found for found in _read(results) if (key := _key({name: found.get(name) for name in jobs[0]})) in names
    }
    todo = [job for job in jobs if _key(job) not in done]
    for number, (job, found) in enumerate(_each(todo, work, processes), 1):
        done[_key(job)] = {**job, **found}
        if results is not None:
            with results.open("a") as file:
                print(json.dumps({**job, **found}), file=file)
        tell(f"{number}/{len(todo)} {', '.join(str(value) for value in job.values())}")
    return [done[_key(job)] for job in jobs]


def _key(job: Job) -> str:
    return json.dumps(job, sort_keys=True)


def _read(results: Path | None) -> list[Done]:
    return [json.loads(line) for line in results.read_text().splitlines()] if results and results.exists() else []


def _each(jobs: Sequence[Job], work: Callable[[Job], Done], processes: int) -> Iterator[tuple[Job, Done]]:
    """Each job with its outcome, as they end; without a second process in this one."""
    if processes == 1 or len(jobs) < 2:
        yield from ((job, work(job)) for job in jobs)
        return
    # spawned: a fork would inherit torch's threads in a state that they are not in
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        running = {pool.submit(work, job): job for job in jobs}
        yield from ((running[each], each.result()) for each in as_completed(running))
