"""How the processes at one PostgreSQL hear of each other's changes: LISTEN and NOTIFY on a channel.

A notice is sent within the transaction that makes the change, so it arrives when the change can be read. It says only that
something has changed: whoever hears it looks at the database. While nobody hears, looking now and then takes its place.
"""

import asyncio
import logging
from collections.abc import Callable

import psycopg
from psycopg.conninfo import make_conninfo
from sqlalchemy import URL, func, select
from sqlalchemy.orm import Session

from flexlora_server.database.engine import KEEPALIVE

log = logging.getLogger("flexlora.server")
CHANNEL = "flexlora"
RETRY = 2.0  # seconds before a connection that was lost is tried again


def send(session: Session) -> None:
    """Tell every process, once this transaction is committed."""
    session.execute(select(func.pg_notify(CHANNEL, "")))


async def hear(url: URL, heard: Callable[[], None]) -> None:
    """Call `heard` at every notice, for ever, through any number of lost connections; to be cancelled."""
    while True:
        try:
            await _listen(url, heard)
        except (psycopg.Error, OSError) as error:
            log.warning("changes made elsewhere are noticed later, until the database answers again: %s", error)
        await asyncio.sleep(RETRY)


async def _listen(url: URL, heard: Callable[[], None]) -> None:
    told = make_conninfo(url.set(drivername="postgresql").render_as_string(hide_password=False), **KEEPALIVE)
    async with await psycopg.AsyncConnection.connect(told, autocommit=True) as connection:
        await connection.execute(f"LISTEN {CHANNEL}")
        heard()  # what was committed while nobody listened
        async for _ in connection.notifies():
            heard()
