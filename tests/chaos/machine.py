"""The simulated machine: processes that take turns in one thread, and die between any two of their effects.

Product code runs in frames. Before and after everything of it that others can see (a transaction, a name or a sync of a file)
it passes a point, at which the history may have something else happen first: another call, a jump of the clock, a death.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from tests.chaos.disk import Disk, Image
from tests.chaos.history import Interruption, Step

T = TypeVar("T")
_ALONE = frozenset({"kill-me", "cut-power", "break", "beat"})  # what happens without anybody else running


class Killed(BaseException):
    """Goes through the code of a process that has died; what it does on the way is undone."""


class Died(Exception):
    """The process died before its work was done: nobody was told how it ended."""


class Violation(BaseException):
    """Something happened that must not; the product must not catch it."""


@dataclass(eq=False)
class Process:
    """A process of the product; a new incarnation begins where the last one dies."""

    name: str
    incarnation: int = 0

    def kill(self) -> None:
        self.incarnation += 1


@dataclass
class _Frame:
    process: Process
    incarnation: int
    pending: list[Interruption]
    passed: int = 0
    held: int = 0  # locks and writing transactions: nobody else gets far meanwhile, so nobody is let in
    broken: str = ""  # what fails at the next point that it can befall
    beat: bool = False
    image: Image | None = None

    @property
    def dead(self) -> bool:
        return self.process.incarnation != self.incarnation


@dataclass
class Machine:
    """Runs frames and lets the history in between; `perform` does a step, `note` writes the trace."""

    disk: Disk
    perform: Callable[[Step], None] = lambda step: None
    note: Callable[[str], None] = lambda line: None
    frames: list[_Frame] = field(default_factory=list)
    watching: bool = True

    def run(self, process: Process, work: Callable[[], T], during: Sequence[Interruption] = ()) -> T:
        """Do `work` as this process.

        Raises:
            Died: it was killed meanwhile.
        """
        frame = _Frame(process, process.incarnation, list(during))
        self.frames.append(frame)
        try:
            result = work()
        except Violation:
            raise
        except BaseException:
            if not frame.dead:
                raise
        else:
            if not frame.dead:
                return result
        finally:
            self.frames.pop()
            if frame.image is not None:
                with self.aside():
                    self.disk.restore(frame.image)
        raise Died(process.name)

    def point(self, what: str) -> None:
        """Something that others can see is about to happen, or has just happened."""
        if not self.frames:
            return
        frame = self.frames[-1]
        self._stop_dead(frame)
        frame.passed += 1
        for one in [one for one in frame.pending if one.at <= frame.passed]:
            if one.step.kind in _ALONE or not (frame.held or self.disk.locked()):
                frame.pending.remove(one)
                self.note(f"  at `{what}` of {frame.process.name}:")
                self._interrupt(frame, one.step)
        self._stop_dead(frame)

    def _interrupt(self, frame: _Frame, step: Step) -> None:
        if step.kind == "break":
            frame.broken = "storage" if step.arg % 2 else "database"
        elif step.kind == "beat":
            frame.beat = True
        elif step.kind == "kill-me":
            self.note(f"    {frame.process.name} is killed")
            frame.process.kill()
        else:
            self.perform(step)

    def _stop_dead(self, frame: _Frame) -> None:
        if frame.dead:
            if frame.image is None:
                frame.image = self.disk.image()
            raise Killed(frame.process.name)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """For the block, files are the simulation's business, not the product's."""
        before, self.watching = self.watching, False
        try:
            yield
        finally:
            self.watching = before

    def dying(self) -> bool:
        """Whether this is what a dead process does on its way out: closing what it had open, and nothing that lasts."""
        return bool(self.frames) and self.frames[-1].image is not None

    def breaks(self, what: str) -> bool:
        """Whether the database or the storage fails now; once."""
        if not self.frames or self.frames[-1].broken != what:
            return False
        self.frames[-1].broken = ""
        self.note(f"    the {what} fails")
        return True

    def beats(self) -> bool:
        """Whether the heartbeat's thread of this worker gets its turn now."""
        due, self.frames[-1].beat = self.frames[-1].beat, False
        return due

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Let nobody in: this process holds something that others wait for."""
        if not self.frames:
            yield
            return
        frame = self.frames[-1]
        frame.held += 1
        try:
            yield
        finally:
            frame.held -= 1
