"""Uploads: announced, growing, accepted or cancelled; and the inputs of a round in their fixed order."""

import secrets
from collections.abc import Sequence

from sqlalchemy import func, select, update

from flexlora_server.errors import Refusal
from flexlora_server.store import Tx
from flexlora_server.tables import Round, Upload
from flexlora_server.times import rfc3339
from flexlora_shared.messages.uploads import Receipt, UploadCreate, UploadStatus
from flexlora_shared.problems import Code


def announce(tx: Tx, round_: Round, client: str, told: UploadCreate) -> tuple[Upload, Upload | None]:
    """The open upload of this announcement, new or found again, and the other one it replaced."""
    open_ = _of(tx, round_, client, "OPEN")
    announced = told.model_dump(mode="json")
    if open_ is not None and open_.announced == announced:
        return open_, None
    if open_ is not None:
        open_.state = "CANCELLED"
        tx.session.flush()  # the table allows one open upload
    fresh = Upload(
        id=secrets.token_hex(16),
        round_id=round_.id,
        client_id=client,
        state="OPEN",
        announced=announced,
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


def _of(tx: Tx, round_: Round, client: str, state: str) -> Upload | None:
    wanted = select(Upload).where(Upload.round_id == round_.id, Upload.client_id == client, Upload.state == state)
    return tx.session.scalar(wanted)


def owned(tx: Tx, upload: str, client: str) -> Upload:
    """An upload that belongs to this client.

    Raises:
        Refusal: UPLOAD_NOT_FOUND, also for somebody else's: whether it exists is not told.
    """
    row = tx.session.get(Upload, upload, populate_existing=True)
    if row is None or row.client_id != client:
        raise Refusal(Code.UPLOAD_NOT_FOUND, f"You have no upload {upload[:64]!r}; create one for your round.")
    return row


def require_open(row: Upload) -> None:
    """Refuse bytes for an upload that is over.

    Raises:
        Refusal: ALREADY_ACCEPTED or UPLOAD_NOT_FOUND.
    """
    if row.state == "ACCEPTED":
        raise Refusal(Code.ALREADY_ACCEPTED, "This upload was accepted; commit it again for its receipt.")
    if row.state == "CANCELLED":
        raise Refusal(Code.UPLOAD_NOT_FOUND, "This upload was cancelled; create another one.")


def advance(tx: Tx, upload: str, before: int, after: int) -> bool:
    """Acknowledge bytes [before, after): compare-and-set, False where the upload moved or ended meanwhile."""
    moved = update(Upload).where(Upload.id == upload, Upload.state == "OPEN", Upload.offset == before)
    return tx.session.execute(moved.values(offset=after).returning(Upload.id)).first() is not None


def accept(tx: Tx, row: Upload) -> None:
    """The update counts from now on."""
    row.state, row.accepted_at = "ACCEPTED", tx.now
    tx.session.flush()


def cancel(tx: Tx, row: Upload) -> None:
    """The upload is over without counting."""
    row.state = "CANCELLED"


def inputs(tx: Tx, round_: Round) -> Sequence[Upload]:
    """The accepted uploads of a round, in the order in which they are summed."""
    wanted = select(Upload).where(Upload.round_id == round_.id, Upload.state == "ACCEPTED")
    return tx.session.scalars(wanted.order_by(Upload.client_id)).all()


def in_round(tx: Tx, round_: Round) -> Sequence[Upload]:
    """The round's uploads that are open or accepted."""
    wanted = select(Upload).where(Upload.round_id == round_.id, Upload.state.in_(("OPEN", "ACCEPTED")))
    return tx.session.scalars(wanted.order_by(Upload.client_id)).all()


def cancel_open(tx: Tx, round_: Round) -> list[str]:
    """Cancel what is still open in a round that has ended; the ids, whose bytes may go."""
    ending = update(Upload).where(Upload.round_id == round_.id, Upload.state == "OPEN").values(state="CANCELLED")
    return [row.id for row in tx.session.execute(ending.returning(Upload.id))]


def bytes_received(tx: Tx, round_: Round) -> int:
    """Bytes that arrived for the round, accepted or on their way."""
    counted = select(func.sum(Upload.offset)).where(Upload.round_id == round_.id, Upload.state != "CANCELLED")
    return int(tx.session.scalar(counted) or 0)


def status(row: Upload, round_: Round) -> UploadStatus:
    """The upload as its owner sees it."""
    return UploadStatus(
        id=row.id,
        run=round_.run,
        round=round_.number,
        state=row.state,  # type: ignore[arg-type]
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
        sha256=row.sha256,
        accepted_at=rfc3339(row.accepted_at),
    )
