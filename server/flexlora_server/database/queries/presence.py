"""Queries of presence: the participants that poll for work, or did within the presence window."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any

from sqlalchemy import ColumnElement, Select, func, select, update
from sqlalchemy.orm import InstrumentedAttribute

from flexlora_server.database.schema import Client, Participation
from flexlora_server.database.transactions import Tx

CLIENTS_PER_QUERY = 1000


def is_enrolled(client: InstrumentedAttribute[str]) -> ColumnElement[bool]:
    """The condition that a client was not revoked. The subquery reads the few revoked ones once, without a join."""
    return client.not_in(select(Client.id).where(Client.revoked_at.is_not(None)))


class PresentClients(Mapping[str, str]):
    """A run's participants seen since an instant, but for some: their ids, and the names that they are drawn by.

    `len` counts in the database; access reads them once.
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
    def _names(self) -> dict[str, str]:
        query = self._query(Participation.client_id, Client.name).join(Client, Client.id == Participation.client_id)
        rows = self._tx.session.execute(query.order_by(Client.enrolled_at, Client.id))
        return distinct_names((row.client_id, row.name) for row in rows)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __getitem__(self, client: str) -> str:
        return self._names[client]


def distinct_names(clients: Iterable[tuple[str, str]]) -> dict[str, str]:
    """A name of its own for each client, by id: nothing keeps two from enrolling under one name, and the later one is numbered.

    clients: (id, name) in the order of their enrollment.
    """
    seen, names = Counter[str](), dict[str, str]()
    for client, name in clients:
        seen[name] += 1
        names[client] = name if seen[name] == 1 else f"{name} ({seen[name]})"  # no client's name has parentheses
    return names


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
