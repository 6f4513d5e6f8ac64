"""Formats messages as tables and sentences; `show` prints those or JSON."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from flexlora_client.agent.diary import Place
from flexlora_shared.messages.base import Message
from flexlora_shared.messages.clients import ClientList
from flexlora_shared.messages.runs import RunDetail, RunList, RunSpec, RunStatus
from flexlora_shared.messages.status import (
    EvaluationSummary,
    RoundDetail,
    RoundInput,
    RoundList,
    RoundSummary,
    UpdateMetrics,
)

PIPE_WIDTH = 200  # columns where stdout is no terminal: nothing is folded for the reader behind the pipe


def show(message: Message, readable: str | Table, as_json: bool) -> None:
    """Print the message as one line of JSON, or its readable form."""
    if as_json:
        print(message.model_dump_json())
        return
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    console.print(readable, soft_wrap=isinstance(readable, str))


def run_list(runs: RunList) -> Table:
    """A table of runs."""
    rows = [
        (
            run.name,
            run.state,
            _strategy(run),
            _ranks(run.ranks),
            f"{run.rounds_published}/{run.rounds}",
            run.participants,
            run.waiting_for,
        )
        for run in runs.runs
    ]
    return _table(("run", "state", "strategy", "ranks", "rounds", "participants", "waiting for"), rows)


def places(here: Sequence[Place], home: Path) -> Table:
    """A table of where the participant of a home stands in its runs."""
    rows = [
        (
            place.run,
            _held(place.rank, place.hold_rank) if place.rank else "-",
            "-" if place.round is None else f"{place.round} of {place.rounds}",
            "-" if place.accepted is None else f"round {place.accepted}, {place.accepted_at}",
            f"{place.last}, {place.last_at}",
        )
        for place in here
    ]
    table = _table(("run", "rank", "round", "last accepted", "last event"), rows)
    table.title, table.title_justify = f"\nof {home}", "left"
    return table


def run_status(status: RunStatus) -> Table:
    """A table of one run's fields."""
    current = "-" if status.current_round is None else f"{status.current_round} ({status.round_state})"
    rows = [
        ("run", status.name),
        ("state", status.state),
        ("rounds published", f"{status.rounds_published} of {status.rounds}"),
        ("current round", current),
        ("waiting for", status.waiting_for),
        ("participants", status.participants),
        ("ranks", _ranks(status.ranks)),
        ("strategy", _strategy(status)),
        ("model", status.model),
        ("created", status.created_at),
    ]
    if status.reason:
        rows.append(("reason", status.reason))
    return _table(None, rows)


def run_detail(detail: RunDetail) -> str:
    """The run's state, and its definition as JSON."""
    status = detail.status
    return f"run {status.name} is {status.state}: {status.waiting_for}\n{detail.spec.model_dump_json(indent=2)}"


def round_list(rounds: RoundList) -> Table:
    """A table of a run's rounds."""
    columns = (
        "round",
        "attempt",
        "state",
        "accepted",
        "assigned",
        "train loss",
        "evaluation",
        "energy kept",
        "waiting for",
    )
    return _table(columns, [_round(summary) for summary in rounds.rounds])


def round_detail(detail: RoundDetail) -> Table:
    """One round: its figures, then its participants where they may be seen, then its modules."""
    s = detail.summary
    rows: list[tuple[object, object]] = [
        ("round", f"{s.number}, attempt {s.attempt}"),
        ("state", s.state),
        ("waiting for", s.waiting_for),
        ("opened", s.opened_at),
        ("deadline", s.deadline or "-"),
        ("published", s.published_at or "-"),
        ("accepted", f"{s.participants.accepted} of {s.participants.assigned} assigned"),
        ("participants", ", ".join(f"{c.participants} of rank {_held(c.rank, c.hold_rank)}" for c in s.by_rank) or "-"),
        ("bytes received", s.bytes_received),
        ("training", _figures(s.train_metrics)),
        *((f"{e.metric} at rank {e.rank}", f"{e.value:.4f} ({_whose(e)})") for e in s.evaluations),
        *((f"energy kept at rank {e.rank}", f"{e.share:.4f}") for e in s.energy_kept),
    ]
    if s.failures:
        rows.append(("failed to aggregate", f"{s.failures} times, the last: {s.reason or 'no reason was given'}"))
    rows += _aggregated(s)
    rows += [(f"input {i.upload_id}", _input(i)) for i in detail.inputs or ()]
    for p in detail.participants or ():
        declared = f", declared {p.declared_at}" if p.declared_at else ""
        state = f"{p.state} ({p.failure})" if p.failure else p.state
        late = "".join(f"; of an earlier round{_became(update)}" for update in p.late)
        rank = _held(p.rank, p.hold_rank)
        row = f"rank {rank}{declared}, {state}, {p.bytes_received} bytes{_became(p.update)}{late}"
        rows.append((f"participant {p.name}", row))
    for m in detail.modules:
        rows.append((f"singular values of {m.name}", ", ".join(f"{value:.3g}" for value in m.singular_values[:8])))
        rows += [(f"route of {m.name}", f"{m.route}, after {failed}") for failed in m.fell_back]
    return _table(None, rows)


def _whose(evaluation: EvaluationSummary) -> str:
    return f"{evaluation.participants} {'evaluators' if evaluation.role == 'evaluator' else 'participants'}"


def _input(entry: RoundInput) -> str:
    late = f", late by {entry.staleness}" if entry.staleness else ""
    excluded = ", excluded" if entry.excluded else ""
    return f"of {entry.client_id} for round {entry.round}{late}{excluded}{_became(entry.update)}"


def _aggregated(s: RoundSummary) -> list[tuple[object, object]]:
    rows: list[tuple[object, object]] = []
    if s.energy_above_smallest_rank is not None:
        rows.append(("energy above the smallest rank", f"{s.energy_above_smallest_rank:.4f}"))
    if s.aggregation is not None:
        c, most = s.aggregation.pairwise_cosine, s.aggregation.certificate
        if c is not None:
            rows.append(("cosine of two updates", f"{c.median:.3f} (median; {c.least:.3f} to {c.most:.3f})"))
        if s.aggregation.late:
            rows.append(("came late", f"{s.aggregation.late} updates of earlier rounds"))
        rows.append(("change", f"{s.aggregation.change_norm:.4g} (median norm)"))
        rows.append(
            ("truncation error", "the smallest possible" if most == 1 else f"at most {most:.4f} of the smallest")
        )
        if s.aggregation.capped:
            rows.append(("weight capped", f"of {s.aggregation.capped} updates"))
        if s.aggregation.filtered:
            rows.append(("noted by filters", f"{s.aggregation.filtered} updates"))
    return rows


def _became(update: UpdateMetrics | None) -> str:
    if update is None:
        return ""
    cosine = "" if update.cosine is None else f", cosine {update.cosine:.3f}"
    return f"; weight {update.weight:.3f}, change {update.change_norm:.3g}{cosine}" + "".join(
        f"; {note}" for note in update.notes
    )


def modules(spec: RunSpec) -> Table:
    """A table of what a run trains: its linear layers and its extra tensors."""
    rows: list[tuple[object, ...]] = [(m.name, m.out_features, m.in_features) for m in spec.modules]
    rows += [(t.name, "x".join(map(str, t.shape)), "in full") for t in spec.extra]
    return _table(("module", "out", "in"), rows)


def client_list(clients: ClientList) -> Table:
    """A table of clients."""
    rows = [
        (client.client_id, client.name, client.enrolled_at, client.key_issued_at or "-", client.revoked_at or "-")
        for client in clients.clients
    ]
    return _table(("client", "name", "enrolled", "key issued", "revoked"), rows)


def _round(s: RoundSummary) -> tuple[object, ...]:
    losses = [
        f"{e.rank}: {e.value:.3f}{' (evaluators)' if e.role == 'evaluator' else ''}"
        for e in s.evaluations
        if e.metric == "loss"
    ]
    kept = [f"{e.rank}: {e.share:.3f}" for e in s.energy_kept]
    loss = s.train_metrics.get("train_loss")
    return (
        s.number,
        s.attempt,
        s.state,
        s.participants.accepted,
        s.participants.assigned,
        "-" if loss is None else f"{loss:.4f}",
        ", ".join(losses) or "-",
        ", ".join(kept) or "-",
        s.waiting_for,
    )


def _strategy(status: RunStatus) -> str:
    options = status.strategy_options.text
    return f"{status.strategy} ({options})" if options else status.strategy


def _held(rank: int, hold_rank: int | None) -> str:
    """A rank, and the one that is held where that is larger."""
    return str(rank) if hold_rank is None or hold_rank == rank else f"{rank} (holding {hold_rank})"


def _ranks(ranks: Iterable[int]) -> str:
    return " ".join(map(str, sorted(ranks)))


def _figures(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items()) or "-"


def _table(columns: Sequence[str] | None, rows: Iterable[tuple[object, ...]]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=columns is not None)
    for name in columns or ("", ""):
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    return table
