"""Queries of the event log: one row a state change; and the run's version, which waiting requests compare."""

from collections.abc import Sequence

from sqlalchemy import select

from flexlora_server.database.schema import Event, Run
from flexlora_server.database.transactions import Tx


def record(tx: Tx, run: Run, kind: str, detail: str, round_number: int | None = None) -> None:
    """Log a change of a locked run."""
    tx.session.add(Event(run=run.name, round=round_number, kind=kind, detail=detail, at=tx.now))
    touch(tx, run)


def touch(tx: Tx, run: Run) -> None:
    """Raise the run's version, which resolves the requests that wait for a change of it."""
    run.version += 1
    tx.changed = True


def after(tx: Tx, run: str, last: int, limit: int = 500) -> Sequence[Event]:
    """A run's events after the one with id `last`, oldest first, at most `limit`."""
    query = select(Event).where(Event.run == run, Event.id > last).order_by(Event.id).limit(limit)
    return tx.session.scalars(query).all()
