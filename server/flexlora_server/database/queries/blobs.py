"""Queries of the blobs that rows refer to, by SHA-256."""

from sqlalchemy import select

from flexlora_server.database.schema import Adapter, Slice, Upload
from flexlora_server.database.transactions import Tx


def referenced_blobs(tx: Tx) -> frozenset[str]:
    """The blobs that must exist: published adapters, slices, accepted updates."""
    return _digests(tx, "ACCEPTED")


def protected_blobs(tx: Tx) -> frozenset[str]:
    """The blobs that must not be deleted: also those of open uploads, which a commit in progress may be about to accept."""
    return _digests(tx, "ACCEPTED", "OPEN")


def _digests(tx: Tx, *states: str) -> frozenset[str]:
    queries = (
        select(Adapter.sha256),
        select(Slice.sha256),
        select(Upload.sha256).where(Upload.state.in_(states)),
    )
    return frozenset(sha256 for query in queries for sha256 in tx.session.scalars(query))
