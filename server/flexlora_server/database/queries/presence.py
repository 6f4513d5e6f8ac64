"""Who is present: the participants that wait for work, or did a moment ago."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, overload

from sqlalchemy import ColumnElement, Select, func, select, update
from sqlalchemy.orm import InstrumentedAttribute

from flexlora_server.database.schema import Client, Participation
from flexlora_server.database.transactions import Tx

BATCH = 1000  # participants in one statement


def enrolled(client: InstrumentedAttribute[str]) -> ColumnElement[bool]:
    """That the client was not revoked: the few that were are read once, instead of every client one by one."""
    return client.not_in(select(Client.id).where(Client.revoked_at.is_not(None)))


class Present(Sequence[str]):
    """The ids of a run's participants seen since an instant, in order. The database counts them; they are read when asked for."""

    def __init__(self, tx: Tx, run: str, since: datetime) -> None:
        self._tx, self._run, self._since = tx, run, since

    def _wanted(self, *columns: Any) -> Select[Any]:
        wanted = select(*columns).where(Participation.run == self._run, Participation.last_seen_at >= self._since)
        return wanted.where(enrolled(Participation.client_id))

    @cached_property
    def _count(self) -> int:
        return self._tx.session.scalar(self._wanted(func.count(Participation.client_id))) or 0

    @cached_property
    def _ids(self) -> Sequence[str]:
        wanted = self._wanted(Participation.client_id).order_by(Participation.client_id)
        return self._tx.session.scalars(wanted).all()

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


def saw(tx: Tx, run: str, clients: Sequence[str]) -> None:
    """Write that these participants are polling for a task of the run now."""
    asked = sorted(clients)
    for start in range(0, len(asked), BATCH):
        some = Participation.client_id.in_(asked[start : start + BATCH])
        polling = update(Participation).where(Participation.run == run, some).values(last_seen_at=tx.now)
        tx.session.execute(polling.execution_options(synchronize_session=False))
