"""Queries of uploads: announced, open, accepted or cancelled."""

import secrets
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.orm import undefer

from flexlora_server.database.schema import Round, Upload
from flexlora_server.database.timestamps import rfc3339
from flexlora_server.database.transactions import Tx
from flexlora_server.errors import Refusal
from flexlora_shared.messages.uploads import Receipt, UploadCreate, UploadStatus
from flexlora_shared.problems import Code


def announce(tx: Tx, round_: Round, client: str, announcement: UploadCreate) -> tuple[Upload, Upload | None]:
    """The open upload of this announcement, existing or new, and the upload that a new one replaces.

    A participant has at most one open upload in a run: one for an earlier round is cancelled.
    """
    if (existing := find_announced(tx, round_, client, announcement)) is not None:
        return existing, None
    open_ = find_open(tx, round_, client)
    if open_ is not None:
        open_.state = "CANCELLED"
        tx.session.flush()  # the table allows one open upload
    _cancel_where(tx, Upload.client_id == client, _of_run(round_.run))
    row = Upload(
        id=secrets.token_hex(16),
        round_id=round_.id,
        client_id=client,
        state="OPEN",
        announced=announcement.model_dump(mode="json"),
        size=announcement.size,
        sha256=announcement.sha256,
        offset=0,
        created_at=tx.now,
    )
    tx.session.add(row)
    tx.session.flush()
    return row, open_


def find_accepted(tx: Tx, round_: Round, client: str) -> Upload | None:
    """The participant's accepted upload in the round, None without one."""
    return _find(tx, round_, client, "ACCEPTED")


def find_announced(tx: Tx, round_: Round, client: str, announcement: UploadCreate) -> Upload | None:
    """The participant's open upload with exactly this announcement, None without one."""
    open_ = find_open(tx, round_, client)
    return open_ if open_ is not None and open_.announced == announcement.model_dump(mode="json") else None


def find_open(tx: Tx, round_: Round, client: str) -> Upload | None:
    """The participant's open upload in the round, None without one."""
    return _find(tx, round_, client, "OPEN")


def _find(tx: Tx, round_: Round, client: str, state: str) -> Upload | None:
    query = select(Upload).where(Upload.round_id == round_.id, Upload.client_id == client, Upload.state == state)
    return tx.session.scalar(query)


def get_owned(tx: Tx, upload: str, client: str) -> Upload:
    """An upload that belongs to this client.

    Raises:
        Refusal: UPLOAD_NOT_FOUND, also for another client's upload, so that nobody learns whether it exists.
    """
    row = tx.session.get(Upload, upload, populate_existing=True, options=[undefer(Upload.parts)])
    if row is None or row.client_id != client:
        raise Refusal(Code.UPLOAD_NOT_FOUND, f"You have no upload {upload[:64]!r}; create one for your round.")
    return row


def require_open(tx: Tx, row: Upload) -> None:
    """Refuse an upload that was accepted or cancelled.

    Raises:
        Refusal: ALREADY_ACCEPTED, ROUND_CLOSED where the round's end cancelled it, else UPLOAD_NOT_FOUND.
    """
    if row.state == "ACCEPTED":
        raise Refusal(Code.ALREADY_ACCEPTED, "This upload was accepted; commit it again for its receipt.")
    if row.state == "CANCELLED":
        if tx.session.get_one(Round, row.round_id).state not in {"OPEN", "COLLECTING"}:
            raise Refusal(Code.ROUND_CLOSED, "The round of this upload has ended; ask for the next task.")
        raise Refusal(Code.UPLOAD_NOT_FOUND, "This upload was cancelled; create another one.")


def advance(tx: Tx, upload: str, before: int, after: int, part: str | None = None) -> bool:
    """Acknowledge bytes [before, after), in the object `part` if it is one: False where the upload moved or ended meanwhile."""
    values: dict[str, Any] = {"offset": after}
    if part is not None:  # what is read here belongs to `before`, or the compare-and-set fails
        values["parts"] = [*(tx.session.get_one(Upload, upload, populate_existing=True).parts or ()), part]
    moved = update(Upload).where(Upload.id == upload, Upload.state == "OPEN", Upload.offset == before)
    return tx.session.execute(moved.values(values).returning(Upload.id)).first() is not None


def shorten(tx: Tx, upload: str, before: int, after: int) -> bool:
    """Set the offset back to `after` and forget all part objects, whose bytes are lost; the result as of `advance`."""
    moved = update(Upload).where(Upload.id == upload, Upload.state == "OPEN", Upload.offset == before)
    return tx.session.execute(moved.values(offset=after, parts=None).returning(Upload.id)).first() is not None


def accept(tx: Tx, row: Upload, counts_in: int) -> None:
    """Accept an upload: it counts from now on, in the aggregation of round `counts_in`."""
    _end_open(tx, row, state="ACCEPTED", accepted_at=tx.now, counts_in=counts_in)


def cancel(tx: Tx, row: Upload) -> None:
    """Cancel an upload."""
    _end_open(tx, row, state="CANCELLED")


def _end_open(tx: Tx, row: Upload, **values: Any) -> None:
    """End an open upload: compare-and-set, since a commit and a cancellation may race.

    Raises:
        Refusal: as `require_open`.
    """
    ending = update(Upload).where(Upload.id == row.id, Upload.state == "OPEN").values(**values).returning(Upload.id)
    ended = tx.session.execute(ending).first() is not None
    tx.session.refresh(row)
    if not ended:
        require_open(tx, row)


def open_ids(tx: Tx) -> frozenset[str]:
    """The ids of all open uploads."""
    return frozenset(tx.session.scalars(select(Upload.id).where(Upload.state == "OPEN")))


def list_of_round(tx: Tx, round_: Round) -> Sequence[Upload]:
    """The round's uploads that are open or accepted."""
    query = select(Upload).where(Upload.round_id == round_.id, Upload.state.in_(("OPEN", "ACCEPTED")))
    return tx.session.scalars(query.order_by(Upload.client_id)).all()


def cancel_open(tx: Tx, round_: Round) -> None:
    """Cancel the open uploads of a round that has ended; `garbage_collector` deletes their bytes."""
    _cancel_where(tx, Upload.round_id == round_.id)


def cancel_open_of_run(tx: Tx, run: str) -> None:
    """Cancel the open uploads of a run that is over."""
    _cancel_where(tx, _of_run(run))


def cancel_open_of_client(tx: Tx, client: str) -> None:
    """Cancel the open uploads of a participant that was revoked."""
    _cancel_where(tx, Upload.client_id == client)


def _of_run(run: str) -> ColumnElement[bool]:
    return Upload.round_id.in_(select(Round.id).where(Round.run == run))


def _cancel_where(tx: Tx, *which: ColumnElement[bool]) -> None:
    ending = update(Upload).where(Upload.state == "OPEN", *which).values(state="CANCELLED")
    tx.session.execute(ending.execution_options(synchronize_session="fetch"))


def clients_carried_over(tx: Tx, round_: Round) -> Sequence[str]:
    """The clients with an accepted update in this round; in an OPEN round, carried over from an abandoned attempt."""
    query = select(Upload.client_id).where(Upload.round_id == round_.id, Upload.state == "ACCEPTED")
    return tx.session.scalars(query.order_by(Upload.client_id)).all()


def carry_over(tx: Tx, before: Round, after: Round) -> None:
    """Move an abandoned attempt's open and accepted uploads to the next attempt, which begins from the same adapter."""
    moving = update(Upload).where(Upload.round_id == before.id, Upload.state.in_(("OPEN", "ACCEPTED")))
    tx.session.execute(moving.values(round_id=after.id).execution_options(synchronize_session="fetch"))


def count_nowhere(tx: Tx, run: str, number: int) -> int:
    """Let no accepted upload count in round `number` of a run that was rolled back, or later; how many there were.

    They stay, with their receipts, as updates of that round, which has no inputs.
    """
    dropped = update(Upload).where(_of_run(run), Upload.state == "ACCEPTED", Upload.counts_in >= number)
    dropped = dropped.values(counts_in=number).returning(Upload.id)
    return len(tx.session.execute(dropped.execution_options(synchronize_session="fetch")).all())


def bytes_received(tx: Tx, round_: Round) -> int:
    """Bytes received for the round, of open and accepted uploads."""
    counted = select(func.sum(Upload.offset)).where(
        Upload.round_id == round_.id, Upload.state.in_(("OPEN", "ACCEPTED"))
    )
    return int(tx.session.scalar(counted) or 0)


def status(row: Upload, round_: Round) -> UploadStatus:
    """The upload as its owner sees it."""
    return UploadStatus(
        id=row.id,
        run=round_.run,
        round=round_.number,
        state=row.state,
        offset=row.offset,
        size=row.size,
        sha256=row.sha256,
    )


def receipt(row: Upload, round_: Round) -> Receipt:
    """The receipt of an accepted upload."""
    assert row.accepted_at is not None, "only accepted uploads have a receipt"
    return Receipt(
        upload_id=row.id,
        run=round_.run,
        round=round_.number,
        counts_in=round_.number if row.counts_in is None else row.counts_in,
        sha256=row.sha256,
        accepted_at=rfc3339(row.accepted_at),
    )
