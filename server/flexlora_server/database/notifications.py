"""Tells the processes at one PostgreSQL of each other's changes: LISTEN and NOTIFY on one channel.

A notification is sent within the transaction that makes the change, so it arrives when the change can be read. It says only that
something has changed: who receives it polls the database. While no connection listens, regular polls take its place.
"""

import asyncio
import logging
from collections.abc import Callable

import psycopg
from psycopg.conninfo import make_conninfo
from sqlalchemy import URL, func, select
from sqlalchemy.orm import Session

from flexlora_server.database.engine import KEEPALIVE_OPTIONS

log = logging.getLogger("flexlora.server")
CHANNEL = "flexlora"
RECONNECT_AFTER_S = 2.0


def notify(session: Session) -> None:
    """Notify every listening process, once this transaction is committed."""
    session.execute(select(func.pg_notify(CHANNEL, "")))


async def listen(url: URL, on_notification: Callable[[], None]) -> None:
    """Call `on_notification` at every notification, across lost connections, until cancelled."""
    while True:
        try:
            await _listen_once(url, on_notification)
        except (psycopg.Error, OSError) as error:
            log.warning("changes made elsewhere are noticed later, until the database answers again: %s", error)
        await asyncio.sleep(RECONNECT_AFTER_S)


async def _listen_once(url: URL, on_notification: Callable[[], None]) -> None:
    conninfo = make_conninfo(
        url.set(drivername="postgresql").render_as_string(hide_password=False), **KEEPALIVE_OPTIONS
    )
    async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as connection:
        await connection.execute(f"LISTEN {CHANNEL}")
        on_notification()  # what was committed while nobody listened
        async for _ in connection.notifies():
            on_notification()
