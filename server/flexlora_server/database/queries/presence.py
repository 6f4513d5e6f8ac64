"""Queries of presence: the participants that poll for work, or did within the presence window."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, overload

from sqlalchemy import ColumnElement, Select, func, select, update
from sqlalchemy.orm import InstrumentedAttribute

from flexlora_server.database.schema import Client, Participation
from flexlora_server.database.transactions import Tx

CLIENTS_PER_QUERY = 1000


def is_enrolled(client: InstrumentedAttribute[str]) -> ColumnElement[bool]:
    """The condition that a client was not revoked. The subquery reads the few revoked ones once, without a join."""
    return client.not_in(select(Client.id).where(Client.revoked_at.is_not(None)))


class PresentClients(Sequence[str]):
    """The sorted ids of a run's participants seen since an instant, but for some.

    `len` counts in the database; access reads the ids once.
    """

    def __init__(self, tx: Tx, run: str, since: datetime, but: Select[str]) -> None:
        self._tx, self._run, self._since, self._but = tx, run, since, but

    def _query(self, *columns: Any) -> Select[Any]:
        query = select(*columns).where(Participation.run == self._run, Participation.last_seen_at >= self._since)
        return query.where(is_enrolled(Participation.client_id), Participation.client_id.not_in(self._but))

    @cached_property
    def _count(self) -> int:
        return self._tx.session.scalar(self._query(func.count(Participation.client_id))) or 0

    @cached_property
    def _ids(self) -> Sequence[str]:
        query = self._query(Participation.client_id).order_by(Participation.client_id)
        return self._tx.session.scalars(query).all()

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        return self._ids[index]


def mark_seen(tx: Tx, run: str, clients: Sequence[str]) -> dict[str, str | None]:
    """Write that these participants poll for a task of the run now; the instance of each that declared last."""
    ordered, instances = sorted(clients), dict[str, str | None]()
    for start in range(0, len(ordered), CLIENTS_PER_QUERY):
        batch = Participation.client_id.in_(ordered[start : start + CLIENTS_PER_QUERY])
        polling = update(Participation).where(Participation.run == run, batch).values(last_seen_at=tx.now)
        polling = polling.returning(Participation.client_id, Participation.instance)
        rows = tx.session.execute(polling.execution_options(synchronize_session=False)).all()
        instances |= {row.client_id: row.instance for row in rows}
    return instances
