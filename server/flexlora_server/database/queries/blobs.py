"""Which blobs the rows name."""

from sqlalchemy import select

from flexlora_server.database.schema import Adapter, Slice, Upload
from flexlora_server.database.transactions import Tx


def named(tx: Tx) -> frozenset[str]:
    """The blobs that must be there: published adapters, slices, accepted updates."""
    return _digests(tx, "ACCEPTED")


def claimed(tx: Tx) -> frozenset[str]:
    """The blobs that must not be deleted: also those that a commit in progress may be about to name."""
    return _digests(tx, "ACCEPTED", "OPEN")


def _digests(tx: Tx, *states: str) -> frozenset[str]:
    wanted = (
        select(Adapter.sha256),
        select(Slice.sha256),
        select(Upload.sha256).where(Upload.state.in_(states)),
    )
    return frozenset(sha256 for one in wanted for sha256 in tx.session.scalars(one))
