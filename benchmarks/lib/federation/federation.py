"""A federation on real input, measured from outside: a coordinator and its agents as processes, HTTP between them.

The product runs unchanged. The benchmark reads what the agents say on their standard output, and exports the adapter that
each round publishes to measure it.
"""

import resource
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from benchmarks.lib.federation.figures import Metrics, Row, Tally
from demo.cluster import Agent, Cluster, agents, cluster
from demo.watch import Record, events
from flexlora_shared.messages.status import RoundDetail, RoundList, RoundSummary


class BenchmarkError(Exception):
    """A sentence: what is wrong with the input, or what failed on the way."""


NEUTRAL = {"weighting": "examples", "robust": []}  # the rule as it is named, without the bounds of a new run


@dataclass(frozen=True)
class Participant:
    """One agent: its rank and data files. Without a held-out file it holds out a tenth of its data itself."""

    name: str
    rank: int
    train: Path
    heldout: Path | None = None


@dataclass(frozen=True)
class Federation:
    """One run to be held: its definition, who takes part, and how its adapters are measured."""

    definition: Mapping[str, Any]
    people: Sequence[Participant]
    measure: Callable[[Path], Metrics]  # of the adapter in a folder
    show: Callable[[Row], None]
    options: Sequence[str] = ()  # more of `flexlora-client run`, the same for all

    def hold(self, folder: Path) -> dict[str, Any]:
        """Hold the run in `folder`, showing each round as it is published; its figures.

        Raises:
            BenchmarkError: an agent or a command failed.
        """
        begun, cpu = time.monotonic(), _cpu_seconds()
        try:
            with cluster(folder) as made:
                made.create_run({**NEUTRAL, **self.definition})
                for person in self.people:
                    made.enroll(person.name)
                with agents([self._start(made, person) for person in self.people]) as started:
                    figures = self._follow(made, started)
        except RuntimeError as error:  # what a command said
            raise BenchmarkError(str(error)) from error
        wall, spent = time.monotonic() - begun, _cpu_seconds() - cpu
        return {"wall_seconds": round(wall, 1), "cpu_seconds": round(spent, 1), **figures}

    @property
    def _run(self) -> str:
        return str(self.definition["name"])

    def _start(self, made: Cluster, person: Participant) -> Agent:
        heldout = ["--heldout", str(person.heldout)] if person.heldout else ["--heldout-fraction", "0.1"]
        given = ["--rank", str(person.rank), "--data", str(person.train), *heldout, "--device", "cpu", "--threads", "1"]
        whole = ["--evaluation-share", "1000"]  # figures that do not depend on this machine's speed
        return made.agent(person.name, self._run, *given, *whole, *self.options)

    def _follow(self, made: Cluster, started: Sequence[Agent]) -> dict[str, Any]:
        failed = _end_together(started)
        rows, tally, memory = [self._row(made, 0, Tally())], Tally(), 0
        for agent, event in events(started):
            tally.take(agent.name, event)
            while len(rows) <= tally.published:
                memory = max(memory, _memory(started))
                rows.append(self._row(made, len(rows), tally))
        failed.check()
        listed = RoundList.model_validate_json(made.client("rounds", self._run, "--json")).rounds
        return {
            "agents_memory_mib": round(memory / 2**20),
            "rounds": [asdict(row) for row in rows],
            "bytes_down_after_the_last_round": tally.down[0],
            "heldout_by_rank": {one.number: _by_rank(one) for one in reversed(listed)},  # as the coordinator has it
            "participants": [_participant(person, tally.records[person.name]) for person in self.people],
        }

    def _row(self, made: Cluster, number: int, tally: Tally) -> Row:
        rank, target = str(max(self.definition["ranks"])), made.folder / f"round-{number}"
        made.client("export", self._run, "--rank", rank, "--round", str(number), "-o", str(target))
        metrics = self.measure(target)
        row = Row(0, metrics, 0, 0, 0, 0.0)
        if number:
            told = made.client("rounds", self._run, str(number), "--json")
            found = RoundDetail.model_validate_json(told).summary
            updates, up = found.participants.accepted, found.bytes_received
            row = Row(number, metrics, updates, up, tally.down[number], _seconds(found))
        self.show(row)
        return row


@dataclass
class _Failed:
    """The agents that ended badly by themselves."""

    found: list[Agent] = field(default_factory=list)

    def check(self) -> None:
        """Raises: BenchmarkError, with what the first one said last."""
        if self.found:
            agent = self.found[0]
            said = (agent.home / "agent.log").read_text(errors="replace").strip().splitlines()[-3:]
            raise BenchmarkError(f"the agent {agent.name} ended with code {agent.process.returncode}: {' '.join(said)}")


def _end_together(started: Sequence[Agent]) -> _Failed:
    """When one agent fails, end the others: the run would wait for it."""
    failed = _Failed()

    def wait(agent: Agent) -> None:
        if agent.process.wait() != 0 and not failed.found:
            failed.found.append(agent)
            for other in started:
                other.process.terminate()

    for agent in started:
        threading.Thread(target=wait, args=(agent,), daemon=True).start()
    return failed


def _by_rank(summary: RoundSummary) -> dict[int, Metrics]:
    found: dict[int, Metrics] = defaultdict(dict)
    for one in summary.evaluations:
        found[one.rank][one.metric] = one.value
    return dict(found)


def _seconds(summary: RoundSummary) -> float:
    assert summary.published_at is not None  # the agents have the adapter
    taken = datetime.fromisoformat(summary.published_at) - datetime.fromisoformat(summary.opened_at)
    return round(taken.total_seconds(), 1)


def _participant(person: Participant, record: Record) -> dict[str, Any]:
    return {
        "name": person.name,
        "rank": person.rank,
        "bytes_up": record.uploaded,
        "bytes_down": record.downloaded,
        "heldout": record.evaluations,  # as it reported them, by the round that published the adapter
    }


def _memory(started: Sequence[Agent]) -> int:
    """Bytes of all agents together; pages that they share are counted once where the system tells (PSS)."""
    total = 0
    for agent in started:
        try:
            found = psutil.Process(agent.process.pid).memory_full_info()
        except psutil.NoSuchProcess:  # done already
            continue
        total += getattr(found, "pss", found.rss)
    return total


def _cpu_seconds() -> float:
    """Of this process and all its ended children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)
