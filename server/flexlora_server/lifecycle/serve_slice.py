"""Finds the slice of a published adapter at given ranks, and cuts it on the first request."""

import threading
from collections.abc import Mapping

from flexlora_server.adapter_files import slicing
from flexlora_server.database.queries import adapters, runs
from flexlora_server.database.transactions import Store
from flexlora_server.errors import Refusal
from flexlora_server.storage import Blob, BlobStore
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.problems import Code
from flexlora_shared.ranks import unmatched_keys

_cut_lock = threading.Lock()  # one cut at a time in a process: many agents may request the same new slice at once


def check_ranks(spec: RunSpec, rank: int, pattern: Mapping[str, int]) -> None:
    """Refuse ranks that the run does not allow.

    Raises:
        Refusal: RANK_NOT_ALLOWED, or INVALID_REQUEST for a pattern key that names no module.
    """
    allowed = sorted(spec.ranks)
    for requested in (rank, *pattern.values()):
        if requested not in allowed:
            raise Refusal(
                Code.RANK_NOT_ALLOWED, f"Rank {requested} is not allowed; choose among {allowed}.", allowed=allowed
            )
    check_keys(spec, pattern)


def check_keys(spec: RunSpec, pattern: Mapping[str, object]) -> None:
    """Refuse a pattern that names no module of the run.

    Raises:
        Refusal: INVALID_REQUEST.
    """
    unknown = unmatched_keys((module.name for module in spec.modules), pattern)
    if unknown:
        raise Refusal(
            Code.INVALID_REQUEST, f"The pattern key {unknown[0]!r} names no module of the run.", keys=unknown[:20]
        )


def slice_blob(
    store: Store,
    blobs: BlobStore,
    run: str,
    number: int,
    rank: int,
    pattern: Mapping[str, int],
    *,
    any_pattern: bool = False,
) -> Blob:
    """The blob of a published round's slice; it is cut on the first request.

    Slices are never deleted, and patterns are unlimited: a pattern that no participant of the run has declared is cut only with
    `any_pattern`.

    Raises:
        Refusal: RUN_NOT_FOUND, ADAPTER_NOT_PUBLISHED, RANK_NOT_ALLOWED, INVALID_REQUEST.
    """
    with store.reading() as tx:
        spec = runs.spec_of(runs.get(tx, run))
        check_ranks(spec, rank, pattern)
        adapter = adapters.get_published(tx, run, number)
        existing = adapters.find_slice(tx, run, number, rank, pattern)
        allowed = not pattern or any_pattern or adapters.is_declared(tx, run, rank, pattern)
    if existing is not None:
        return existing
    if not allowed:
        raise Refusal(Code.RANK_NOT_ALLOWED, "No participant of the run has declared this pattern; declare it first.")
    with _cut_lock:
        with store.reading() as tx:
            existing = adapters.find_slice(tx, run, number, rank, pattern)
        if existing is not None:
            return existing
        blob = cut_blob(blobs, adapter.sha256, spec, rank, pattern)
        with blobs.protect_from_collection([blob.sha256]), store.transaction() as tx:
            runs.lock(tx, run)  # another process may have cut the same slice
            adapters.save_slice(tx, run, number, rank, pattern, blob)
        return blob


def cut_blob(blobs: BlobStore, whole: str, spec: RunSpec, rank: int, pattern: Mapping[str, int]) -> Blob:
    """Cut a slice of the stored adapter `whole` into a blob of its own."""
    with blobs.writing() as file:
        slicing.write_slice(blobs.path(whole), spec, rank, pattern, file)
        return blobs.finish(file)
