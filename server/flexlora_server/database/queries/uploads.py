"""Uploads: announced, growing, accepted or cancelled."""

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


def announce(tx: Tx, round_: Round, client: str, told: UploadCreate) -> tuple[Upload, Upload | None]:
    """The open upload of this announcement, new or found again, and the other one it replaced.

    A participant has one open upload in a run: what it still had on its way for an earlier round is over.
    """
    if (again := announced(tx, round_, client, told)) is not None:
        return again, None
    open_ = under_way(tx, round_, client)
    if open_ is not None:
        open_.state = "CANCELLED"
        tx.session.flush()  # the table allows one open upload
    _cancel(tx, Upload.client_id == client, _of_run(round_.run))
    fresh = Upload(
        id=secrets.token_hex(16),
        round_id=round_.id,
        client_id=client,
        state="OPEN",
        announced=told.model_dump(mode="json"),
        size=told.size,
        sha256=told.sha256,
        offset=0,
        created_at=tx.now,
    )
    tx.session.add(fresh)
    tx.session.flush()
    return fresh, open_


def accepted(tx: Tx, round_: Round, client: str) -> Upload | None:
    """The update of this participant that counts in the round."""
    return _of(tx, round_, client, "ACCEPTED")


def announced(tx: Tx, round_: Round, client: str, told: UploadCreate) -> Upload | None:
    """The open upload of this very announcement."""
    open_ = under_way(tx, round_, client)
    return open_ if open_ is not None and open_.announced == told.model_dump(mode="json") else None


def under_way(tx: Tx, round_: Round, client: str) -> Upload | None:
    """What this participant has announced for the round and not completed."""
    return _of(tx, round_, client, "OPEN")


def _of(tx: Tx, round_: Round, client: str, state: str) -> Upload | None:
    wanted = select(Upload).where(Upload.round_id == round_.id, Upload.client_id == client, Upload.state == state)
    return tx.session.scalar(wanted)


def owned(tx: Tx, upload: str, client: str) -> Upload:
    """An upload that belongs to this client.

    Raises:
        Refusal: UPLOAD_NOT_FOUND, also for somebody else's: whether it exists is not told.
    """
    row = tx.session.get(Upload, upload, populate_existing=True, options=[undefer(Upload.parts)])
    if row is None or row.client_id != client:
        raise Refusal(Code.UPLOAD_NOT_FOUND, f"You have no upload {upload[:64]!r}; create one for your round.")
    return row


def require_open(tx: Tx, row: Upload) -> None:
    """Refuse to go on with an upload that is over.

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
    """Take back what was acknowledged beyond `after`, and all objects of parts: the bytes are lost. As `advance`."""
    moved = update(Upload).where(Upload.id == upload, Upload.state == "OPEN", Upload.offset == before)
    return tx.session.execute(moved.values(offset=after, parts=None).returning(Upload.id)).first() is not None


def accept(tx: Tx, row: Upload, counts_in: int) -> None:
    """The update counts from now on, in the aggregation of round `counts_in`."""
    _end(tx, row, state="ACCEPTED", accepted_at=tx.now, counts_in=counts_in)


def cancel(tx: Tx, row: Upload) -> None:
    """The upload is over without counting."""
    _end(tx, row, state="CANCELLED")


def _end(tx: Tx, row: Upload, **values: Any) -> None:
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
    """Every upload that is on its way."""
    return frozenset(tx.session.scalars(select(Upload.id).where(Upload.state == "OPEN")))


def in_round(tx: Tx, round_: Round) -> Sequence[Upload]:
    """The round's uploads that are open or accepted."""
    wanted = select(Upload).where(Upload.round_id == round_.id, Upload.state.in_(("OPEN", "ACCEPTED")))
    return tx.session.scalars(wanted.order_by(Upload.client_id)).all()


def cancel_open(tx: Tx, round_: Round) -> None:
    """Cancel what is still open in a round that has ended; `collect_garbage` deletes the bytes."""
    _cancel(tx, Upload.round_id == round_.id)


def cancel_open_of_run(tx: Tx, run: str) -> None:
    """Cancel what is still open in a run that is over."""
    _cancel(tx, _of_run(run))


def cancel_open_of_client(tx: Tx, client: str) -> None:
    """Cancel what a participant that was revoked has on its way."""
    _cancel(tx, Upload.client_id == client)


def _of_run(run: str) -> ColumnElement[bool]:
    return Upload.round_id.in_(select(Round.id).where(Round.run == run))


def _cancel(tx: Tx, *which: ColumnElement[bool]) -> None:
    ending = update(Upload).where(Upload.state == "OPEN", *which).values(state="CANCELLED")
    tx.session.execute(ending.execution_options(synchronize_session="fetch"))


def carried(tx: Tx, round_: Round) -> Sequence[str]:
    """The participants whose update for this round is in already: of an OPEN round, from an attempt that was abandoned."""
    wanted = select(Upload.client_id).where(Upload.round_id == round_.id, Upload.state == "ACCEPTED")
    return tx.session.scalars(wanted.order_by(Upload.client_id)).all()


def carry(tx: Tx, before: Round, after: Round) -> None:
    """Hand an abandoned attempt's uploads, accepted or on their way, on to the next: it begins from the same adapter."""
    moving = update(Upload).where(Upload.round_id == before.id, Upload.state.in_(("OPEN", "ACCEPTED")))
    tx.session.execute(moving.values(round_id=after.id).execution_options(synchronize_session="fetch"))


def bytes_received(tx: Tx, round_: Round) -> int:
    """Bytes that arrived for the round, accepted or on their way."""
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
    """What proves that the update counts."""
    assert row.accepted_at is not None, "only accepted uploads have a receipt"
    return Receipt(
        upload_id=row.id,
        run=round_.run,
        round=round_.number,
        counts_in=round_.number if row.counts_in is None else row.counts_in,
        sha256=row.sha256,
        accepted_at=rfc3339(row.accepted_at),
    )
