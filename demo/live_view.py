"""Draws docs/live-view.svg: what a participant sees of doctor and of a round, by the program's own output code.

What happens is made up; how it looks is not. `python -m demo.live_view FILE` writes the picture.
"""

import io
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from rich.console import Console
from rich.progress import MofNCompleteColumn

from flexlora_client.agent.checks.findings import Finding
from flexlora_client.agent.reporter import Reporter
from flexlora_client.cli.doctor import table

FINDINGS = (
    Finding("address", "passed", "https://lora.example.org answers, FlexLoRA 0.2.0"),
    Finding(
        "tls",
        "warning",
        "the certificate is valid until 2030-01-09, 8 days from now; tell the operator, agents end when it expires",
    ),
    Finding("rank", "passed", "8, of 4 8 16"),
    Finding("data", "passed", "2,117 examples to train on, 236 held out"),
    Finding("memory", "passed", "at least 0.6 GB are needed beside the activations, 11.2 GB are free"),
    Finding("encoding", "passed", "1.4% of 1000 examples tried are cut at 512 tokens, 0 are left out"),
    Finding(
        "speed",
        "passed",
        "21.3 examples a second, about 1.7 minutes of training in a round of 265 steps, which may take 60.0 minutes",
    ),
)


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = datetime(2030, 1, 1, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


def draw() -> str:
    """The picture."""
    console = Console(
        record=True, width=110, height=30, file=io.StringIO(), force_terminal=True, highlight=False, color_system="truecolor",
        legacy_windows=False, _environ={},
    )  # fmt: skip
    clock = Clock()
    console.print("$ flexlora-client doctor my-run --rank 8 --data train.jsonl")
    console.print(table(FINDINGS))
    console.print("\n$ flexlora-client run my-run --rank 8 --data train.jsonl")
    tell = Reporter("my-run", console=console, now=clock)
    tell.step("declared", "declared rank 8 and 2117 examples", rank=8, examples=2117)
    clock.wait(1)
    wait = "Waiting for participants: 2 of at least 3 are present."
    tell.step("waiting", f"waiting: {wait}", waiting_for=wait)
    clock.wait(64)
    sentence = "round 3 of 10: rank 8, until 2030-01-01T13:01:05Z"
    tell.step("task", sentence, round=3, rounds=10, attempt=1, deadline="2030-01-01T13:01:05Z")
    clock.wait(2)
    tell.step(
        "downloaded", "round 3: adapter of 1957248 bytes, 1957248 over the network", round=3, sha256="", bytes=1957248
    )
    tell.step("training", "round 3: training on 2117 examples", round=3)
    bar = tell.bar(MofNCompleteColumn())
    task = bar.add_task("round 3 of 10, training", total=265)
    for _ in range(97):
        clock.wait(0.375)
        bar.advance(task)
    console.print(bar)
    return console.export_svg(title="flexlora-client", unique_id="live-view")


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(draw())
