"""Runs that do not depend on each other, in processes of one thread each; what is done is kept in a file and not done again."""

import json
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

Job = Mapping[str, Any]  # what tells one run from another, of JSON's types
Done = dict[str, Any]  # the job with what came out of it


Run = Callable[[Sequence[Job]], list[Done]]


@contextmanager
def runner(
    work: Callable[[Job], Done], processes: int, results: Path | None, tell: Callable[[str], None]
) -> Iterator[Run]:
    """What runs jobs: `work` of each merged into the job, in the order of the jobs.

    results: a file of JSON lines; jobs that it has are taken from there, and the others are added as they end, so that what
    was broken off goes on. `work` is a function of a module: it is sent to the processes by name. tell: takes progress.
    """
    if processes == 1:
        yield lambda jobs: _run(jobs, lambda todo: ((job, work(job)) for job in todo), results, tell)
        return
    # spawned: a fork would inherit torch's threads in a state that they are not in
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _begin) as pool:
        yield lambda jobs: _run(jobs, partial(_as_they_end, pool, work), results, tell)


def _begin() -> None:
    """One thread, and a process that ends with the one that began it, also where that was killed in the middle of a run."""
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _as_they_end(pool: Executor, work: Callable[[Job], Done], jobs: Sequence[Job]) -> Iterator[tuple[Job, Done]]:
    running = {pool.submit(work, job): job for job in jobs}
    try:
        yield from ((running[each], each.result()) for each in as_completed(running))
    finally:  # one failed, or the caller was broken off: those that have not begun are dropped
        for each in running:
            each.cancel()


def _run(
    jobs: Sequence[Job],
    each: Callable[[Sequence[Job]], Iterator[tuple[Job, Done]]],
    results: Path | None,
    tell: Callable[[str], None],
) -> list[Done]:
    done = _known(jobs, results)
    todo = [job for job in jobs if _key(job) not in done]
    for number, (job, found) in enumerate(each(todo), 1):
        done[_key(job)] = {**job, **found}
        if results is not None:
            _append(results, json.dumps({**job, **found}))
        tell(f"{number}/{len(todo)} {', '.join(str(value) for value in job.values())}")
    return [done[_key(job)] for job in jobs]


def _append(results: Path, line: str) -> None:
    """After a line that was cut off, on a line of its own."""
    with results.open("a+b") as file:
        if file.tell():
            file.seek(-1, 2)
            line = line if file.read(1) == b"\n" else f"\n{line}"
        file.write(f"{line}\n".encode())


def _known(jobs: Sequence[Job], results: Path | None) -> dict[str, Done]:
    """Those of the jobs that the file has."""
    if not (jobs and results and results.exists()):
        return {}
    names = {_key(job) for job in jobs}
    lines = read_lines(results)
    by_key = {_key({name: found.get(name) for name in jobs[0]}): found for found in lines}
    return {key: found for key, found in by_key.items() if key in names}


def read_lines(results: Path) -> Iterator[Done]:
    """All that a file of results holds; a line that was cut off is nothing."""
    for line in results.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue


def _key(job: Job) -> str:
    return json.dumps(job, sort_keys=True)
