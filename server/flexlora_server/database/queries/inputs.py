"""Queries of the frozen inputs of a round's aggregation, in the order in which they are summed.

They are written once, when the round begins to aggregate; later uploads are not among them. The table holds an upload at most
once, so that none can count twice. Sums depend on the order of their terms, so the content decides it: the same uploads give
the same bytes on every coordinator. A round that an earlier version froze keeps the order that it was frozen in.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import select

from flexlora_server.database.schema import Client, Round, RoundInput, Upload
from flexlora_server.database.transactions import Tx
from flexlora_server.errors import Refusal
from flexlora_shared.problems import Code


@dataclass(frozen=True)
class FrozenInput:
    """An upload that is part of a round's aggregation, and the round for which it was trained."""

    upload: Upload
    round: int
    staleness: int
    excluded: bool


def freeze(tx: Tx, round_: Round) -> int:
    """Fix the inputs of a locked run's round: every accepted upload that counts in it, by its SHA-256; how many.

    The same bytes more than once: by the participant's name, the round they were trained for, the order of enrollment.
    """
    query = select(Upload, Round.number, Client.name, Client.enrolled_at)
    query = query.join(Round, Round.id == Upload.round_id).join(Client, Client.id == Upload.client_id)
    query = query.where(Round.run == round_.run, Upload.state == "ACCEPTED", Upload.counts_in == round_.number)
    # sorted here: databases compare texts by rules of their own
    ordered = sorted(tx.session.execute(query), key=lambda row: (row[0].sha256, row.name, row.number, row.enrolled_at))
    for position, (upload, number, *_) in enumerate(ordered):
        late = round_.number - number
        tx.session.add(RoundInput(round_id=round_.id, position=position, upload_id=upload.id, staleness=late))
    tx.session.flush()
    return len(ordered)


def list_frozen(tx: Tx, round_: Round) -> Sequence[FrozenInput]:
    """The round's inputs, excluded ones too; none before it aggregates."""
    query = select(RoundInput, Upload, Round.number).join(Upload, Upload.id == RoundInput.upload_id)
    query = query.join(Round, Round.id == Upload.round_id).where(RoundInput.round_id == round_.id)
    rows = tx.session.execute(query.order_by(RoundInput.position)).all()
    return [FrozenInput(upload, number, row.staleness, row.excluded) for row, upload, number in rows]


def list_counted(tx: Tx, round_: Round) -> Sequence[FrozenInput]:
    """The round's inputs without those that the operator excluded."""
    return [item for item in list_frozen(tx, round_) if not item.excluded]


def exclude(tx: Tx, round_: Round, uploads: Collection[str]) -> None:
    """Take uploads out of a failed round for good.

    Raises:
        Refusal: UPLOAD_NOT_FOUND for one that is no input, INVALID_REQUEST where none would be left.
    """
    rows = tx.session.scalars(select(RoundInput).where(RoundInput.round_id == round_.id)).all()
    unknown = set(uploads) - {row.upload_id for row in rows}
    if unknown:
        raise Refusal(
            Code.UPLOAD_NOT_FOUND,
            f"{min(unknown)!r} is no input of round {round_.number}; the round's detail lists them.",
        )
    for row in rows:
        row.excluded = row.excluded or row.upload_id in uploads
    if rows and all(row.excluded for row in rows):
        raise Refusal(
            Code.INVALID_REQUEST, f"Round {round_.number} would have no input left; keep one, or cancel the run."
        )
