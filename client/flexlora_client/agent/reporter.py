"""Output of the agent: one line a step and progress bars on stderr, JSON events on stdout."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, ProgressColumn, TimeRemainingColumn

from flexlora_client.agent.diary import Diary
from flexlora_client.coordinator_api.upload_parts import ProgressCallback

HELDOUT_PREFIX = "heldout_"  # of the metrics of what was trained, among those of training
# metrics of the agent's own training loop, which have a place of their own in the sentence about it, or none
TRAIN_METRICS = ("train_loss", "train_steps", "train_steps_planned", "train_seconds", "train_predictions")
EventField = str | int | float | bool | None | Mapping[str, float] | Sequence[Mapping[str, object]]


class Listener(Protocol):
    """Whoever is told the events beside people and programs."""

    def event(self, kind: str, at: str, fields: Mapping[str, Any]) -> None:
        """What happened, when (RFC 3339, UTC), and its fields; docs/events.md lists them."""

    def close(self) -> None:
        """There are no more events."""


class LossListener(Listener, Protocol):
    """One that is told the losses too."""

    def loss(self, round: int, step: int, total: int, loss: float) -> None:
        """The mean loss of step `step` (from 1) of `total` in a round."""


class Reporter:
    """Writes each step as it happens; `as_json` adds one JSON object a step on stdout."""

    def __init__(
        self,
        run: str,
        *,
        as_json: bool = False,
        console: Console | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC).astimezone(),
    ) -> None:
        """console: where to write for people. [stderr]"""
        self._run, self._as_json, self._now = run, as_json, now
        self._round = ""  # of all rounds, once there was a task
        self._diary: Diary | None = None
        self._listeners: list[Listener] = []
        self._tracker: LossListener | None = None
        self._console = console or Console(stderr=True, highlight=False, markup=False, emoji=False)

    def step(self, kind: str, sentence: str, **fields: EventField) -> None:
        """Report one step: `kind` and `fields` for programs, the sentence for people."""
        self._console.print(f"{self._now():%H:%M:%S} {self._run}: {sentence}", soft_wrap=True)
        self.log(sentence)
        self.event(kind, **fields)

    def log(self, sentence: str) -> None:
        """Write to the log alone what somebody else tells people."""
        if self._diary is not None:
            self._diary.line(sentence)

    def event(self, kind: str, **fields: EventField) -> None:
        """Report to programs alone what somebody else tells people."""
        at = self._now().astimezone(UTC).isoformat(timespec="milliseconds")
        if kind == "task":
            self._round = f"round {fields['round']} of {fields['rounds']}, "
        for listener in self._listeners:
            listener.event(kind, at, fields)
        if self._as_json:
            print(json.dumps({"at": at, "event": kind, "run": self._run, **fields}), flush=True)

    def keep(self, diary: Diary) -> None:
        """Write to the diary too from now on."""
        self._diary = diary
        self.tell(diary)

    def track(self, tracker: LossListener) -> None:
        """Tell it every event and every loss from now on."""
        self._tracker = tracker
        self.tell(tracker)

    def loss(self, round: int, step: int, total: int, loss: float) -> None:
        """Tell the loss of step `step` of `total` in a round to whoever tracks losses; nobody else is told."""
        if self._tracker is not None:
            self._tracker.loss(round, step, total, loss)

    def tell(self, listener: Listener) -> None:
        """Tell it every event from now on."""
        self._listeners.append(listener)

    def close(self) -> None:
        """Close whoever listens."""
        for listener in self._listeners:
            listener.close()

    @contextmanager
    def bytes_bar(self, label: str) -> Iterator[ProgressCallback]:
        """Show a progress bar of bytes, on terminals only; yields the callback that advances it."""
        with self._bar(label, DownloadColumn()) as on_progress:
            yield on_progress

    @contextmanager
    def steps_bar(self, label: str) -> Iterator[ProgressCallback]:
        """Show a progress bar of training steps; yields the callback that advances it."""
        with self._bar(label, MofNCompleteColumn()) as on_progress:
            yield on_progress

    @contextmanager
    def _bar(self, label: str, amount: ProgressColumn) -> Iterator[ProgressCallback]:
        with self.bar(amount) as bar:
            task = bar.add_task(f"{self._round}{label}", total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total or None)

    def bar(self, amount: ProgressColumn) -> Progress:
        """A bar with the time that is left; shown on terminals only, and gone when it is done."""
        columns = ("{task.description}", BarColumn(), amount, TimeRemainingColumn(compact=True), "left")
        # leave stdout and stderr of other code alone: a program may read stdout
        return Progress(
            *columns,
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
            redirect_stdout=False,
            redirect_stderr=False,
            get_time=lambda: self._now().timestamp(),
        )


def format_metrics(metrics: Mapping[str, float]) -> str:
    """Metrics as text: `loss 1.234, accuracy 0.5`."""
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())


def format_trained(metrics: Mapping[str, float]) -> str:
    """Metrics of a training as text: `loss 2.507 in 45 steps and 14 s; held out: loss 1.949, accuracy 0.5`."""
    own = {name: value for name, value in metrics.items() if not name.startswith(HELDOUT_PREFIX)}
    heldout = {name.removeprefix(HELDOUT_PREFIX): value for name, value in metrics.items() if name not in own}
    steps, seconds = own.get("train_steps"), own.get("train_seconds")
    told = f"loss {own['train_loss']:.4g}" if "train_loss" in own else "trained"
    if steps is not None and seconds is not None:
        told += f" in {steps:.0f} step{'' if steps == 1 else 's'} and {seconds:.{int(seconds < 10)}f} s"
    others = {name: value for name, value in own.items() if name not in TRAIN_METRICS}
    parts = [", ".join(filter(None, [told, format_metrics(others)]))]
    return "; held out: ".join([*parts, format_metrics(heldout)] if heldout else parts)
