"""What people see while an experiment runs: a line for each round and each figure, and on a terminal bars."""

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from flexlora_simulation.results.tables import EvaluationRow, ParticipantRow, RoundRow, Row


class Progress:
    """Is told the rows of an experiment.

    rounds: to be published in all, of which `done` are. updates: that a round takes; None: not known. metric: the one that
    lines are written for.
    """

    def __init__(self, rounds: int, done: int, updates: int | None, metric: str, console: Console) -> None:
        self._rounds, self._updates, self._metric, self._console = rounds, updates, metric, console
        columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(compact=True), "left")
        self._bars = Bars(
            *columns,
            console=console,
            transient=True,
            disable=not console.is_terminal,
            redirect_stdout=False,  # a program may read it
            redirect_stderr=False,
        )
        self._round_bar = self._bars.add_task("rounds", total=rounds, completed=done)
        self._update_bar = self._bars.add_task("updates", total=updates)

    def __enter__(self) -> "Progress":
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def __call__(self, row: Row) -> None:
        """Show one row."""
        if isinstance(row, RoundRow):
            self._bars.update(self._round_bar, completed=row.round)
            self._bars.reset(self._update_bar, total=self._updates)
            self._line(f"round {row.round} of {self._rounds}: {_round(row)}")
        elif isinstance(row, ParticipantRow) and row.outcome == "accepted":
            self._bars.advance(self._update_bar)
        elif isinstance(row, EvaluationRow) and row.on != "heldout" and row.metric == self._metric:
            self._line(f"round {row.round}: {row.metric} {row.value:.4f} on {row.on} at rank {row.rank}")

    def _line(self, sentence: str) -> None:
        self._console.print(sentence, soft_wrap=True)


def _round(row: RoundRow) -> str:
    if row.round == 0:
        return "the adapter that the run begins with"
    loss = "" if row.train_loss is None else f", train loss {row.train_loss:.4f}"
    return f"{row.accepted} of {row.assigned} updates{loss}, {row.virtual_seconds:.0f} s of virtual time"
