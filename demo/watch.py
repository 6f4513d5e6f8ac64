"""Reads the JSON events that running agents write to standard output."""

import json
import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from demo.cluster import Agent


@dataclass
class Record:
    """What one participant reported: bytes by direction, and metrics of the served adapter by round."""

    downloaded: int = 0
    uploaded: int = 0
    evaluations: dict[int, dict[str, float]] = field(default_factory=dict)

    def take(self, event: dict[str, Any]) -> None:
        """Add one event's figures."""
        if event["event"] == "downloaded":
            self.downloaded += event["bytes"]
        elif event["event"] == "accepted":
            self.uploaded += event["bytes"]
        elif event["event"] == "evaluated":
            self.evaluations[event["round"]] = event["metrics"]


class AgentEndedError(Exception):
    """An agent ended before the run did; the message is the last line of its log."""

    def __init__(self, agent: Agent) -> None:
        lines = (agent.home / "agent.log").read_text(errors="replace").strip().splitlines()
        super().__init__(
            f"the agent {agent.name} ended with code {agent.process.returncode}: {lines[-1] if lines else ''}"
        )


def events(agents: Sequence[Agent]) -> Iterator[tuple[Agent, dict[str, Any]]]:
    """Every event as it comes, until all agents have ended."""
    lines: queue.SimpleQueue[tuple[Agent, bytes | None]] = queue.SimpleQueue()

    def read(agent: Agent) -> None:
        assert agent.process.stdout is not None
        for line in agent.process.stdout:
            lines.put((agent, line))
        lines.put((agent, None))

    for agent in agents:
        threading.Thread(target=read, args=(agent,), daemon=True).start()
    running = len(agents)
    while running:
        agent, line = lines.get()
        if line is None:
            running -= 1
            if agent.process.wait() != 0:  # the others would wait for it for ever
                raise AgentEndedError(agent)
        else:
            yield agent, json.loads(line)
