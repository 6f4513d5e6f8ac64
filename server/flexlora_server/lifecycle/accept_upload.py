"""How an update comes to count: announced, complete, inspected, and then accepted in one transaction."""

from contextlib import suppress
from datetime import datetime
from pathlib import Path

from flexlora_server import state_machine as machine
from flexlora_server.adapter_files.global_adapter_numpy import NumpyGlobalAdapter
from flexlora_server.adapter_files.inspect_upload import check_upload
from flexlora_server.database.queries import adapters, clients, rounds, runs, uploads
from flexlora_server.database.schema import Round, Run, Upload
from flexlora_server.database.transactions import Store, Tx
from flexlora_server.errors import Refusal
from flexlora_server.lifecycle import transitions
from flexlora_server.lifecycle.validation import check_announcement
from flexlora_server.settings import Settings
from flexlora_server.storage import BlobStore, digest
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.messages.uploads import Receipt, UploadCreate, UploadStatus
from flexlora_shared.problems import Code


def announce(store: Store, name: str, number: int, client: str, told: UploadCreate) -> tuple[UploadStatus, str | None]:
    """Open an upload for the round, or find it again; and the id of the one that it replaces, whose bytes may go.

    Raises:
        Refusal: what the state machine or the announcement's own figures refuse.
    """
    with store.transaction() as tx:
        run = runs.lock(tx, name)
        round_ = rounds.latest(tx, name, number)
        clients.require_enrolled(tx, client)
        open_ = uploads.announced(tx, round_, client, told)
        at = None if open_ is None else open_.created_at
        if isinstance(_admit(tx, run, round_, client, told.sha256, at), machine.Repeat):
            before = uploads.accepted(tx, round_, client)
            assert before is not None, "what is repeated was accepted"
            return uploads.status(before, round_), None
        place = rounds.assignment(tx, round_, client)
        assert place is not None, "admitted uploads are assigned"
        check_announcement(runs.spec_of(run), place, told)
        row, replaced = uploads.announce(tx, round_, client, told)
        return uploads.status(row, round_), None if replaced is None else replaced.id


def _admit(
    tx: Tx, run: Run, round_: Round, client: str, sha256: str, announced_at: datetime | None = None
) -> machine.Accept | machine.Repeat:
    """Whether the upload may count, and in which round.

    Raises:
        Refusal: what the state machine refuses.
    """
    before = uploads.accepted(tx, round_, client)
    candidate = machine.Candidate(
        sha256=sha256,
        assigned=rounds.assignment(tx, round_, client) is not None,
        announced=announced_at is not None and round_.deadline is not None and announced_at < round_.deadline,
        accepted_sha256=before.sha256 if before else None,
    )
    decision = machine.admit(
        runs.spec_of(run), rounds.view(tx, run, round_), candidate, rounds.next_number(tx, round_), tx.now
    )
    if isinstance(decision, machine.Refuse):
        raise Refusal(decision.code, decision.detail)
    return decision


def commit(store: Store, blobs: BlobStore, settings: Settings, upload: str, client: str) -> Receipt:
    """Check a complete upload and count it.

    The bytes become a blob before the transaction that names them; a commit that was cut short anywhere can be repeated.

    Raises:
        Refusal: incomplete, wrong digest, bad tensors (the upload is cancelled then), or too late.
    """
    with store.reading() as tx:
        row = uploads.owned(tx, upload, client)
        round_ = tx.session.get_one(Round, row.round_id)
        if row.state == "ACCEPTED":
            return uploads.receipt(row, round_)
        uploads.require_open(tx, row)
        run = runs.get(tx, round_.run)
        _admit(tx, run, round_, client, row.sha256, row.created_at)
        previous = adapters.published(tx, run.name, round_.number - 1)
    if row.offset != row.size:
        raise _incomplete(row.offset, row.size)
    try:
        with blobs.uploads.assembled(upload, row.parts or (), row.sha256) as path:
            _check(path, runs.spec_of(run), row, NumpyGlobalAdapter(blobs.path(previous.sha256)))
            blobs.publish_file(path, row.sha256)
    except Refusal:
        _discard(store, blobs, upload, client)
        raise
    except FileNotFoundError:
        return _gone(store, blobs, row)
    with blobs.protect_from_collection([row.sha256]):
        receipt = _accept(store, settings, upload, client)
    drop(blobs, upload)
    return receipt


def _gone(store: Store, blobs: BlobStore, row: Upload) -> Receipt:
    """What becomes of a commit that found bytes missing: another one has moved them, or the row says why, or they are lost."""
    lost = blobs.uploads.is_incomplete(row.id, row.parts or (), row.sha256)
    with store.transaction() as tx:
        now = uploads.owned(tx, row.id, row.client_id)
        if now.state == "ACCEPTED":
            return uploads.receipt(now, tx.session.get_one(Round, now.round_id))
        uploads.require_open(tx, now)
        if lost:
            uploads.shorten(tx, row.id, row.offset, 0)
    if not lost:
        raise FileNotFoundError(f"the upload {row.id} is whole, but the adapter it is checked against is missing")
    raise _incomplete(0, row.size)


def _incomplete(there: int, size: int) -> Refusal:
    return Refusal(
        Code.UPLOAD_INCOMPLETE,
        f"{there} of {size} bytes have arrived; send the rest, then commit.",
        headers={"Upload-Offset": str(there)},
        offset=there,
    )


def drop(blobs: BlobStore, upload: str) -> None:
    """Delete the bytes of an upload that is over."""
    with suppress(OSError):  # it is decided already; `collect_garbage` deletes what is left
        blobs.uploads.delete(upload)


def _check(path: Path, spec: RunSpec, row: Upload, previous: NumpyGlobalAdapter) -> None:
    found = digest(path)
    if found != row.sha256:
        raise Refusal(
            Code.DIGEST_MISMATCH,
            f"The bytes received have SHA-256 {found}, {row.sha256} was announced; create the upload again.",
            received=found,
        )
    check_upload(path, spec, UploadCreate.model_validate(row.announced), previous)


def _discard(store: Store, blobs: BlobStore, upload: str, client: str) -> None:
    with store.transaction() as tx:
        uploads.cancel(tx, uploads.owned(tx, upload, client))
    drop(blobs, upload)


def _accept(store: Store, settings: Settings, upload: str, client: str) -> Receipt:
    with store.transaction() as tx:
        found = tx.session.get_one(Round, uploads.owned(tx, upload, client).round_id)
        run = runs.lock(tx, found.run)
        row = uploads.owned(tx, upload, client)
        round_ = tx.session.get_one(Round, row.round_id, populate_existing=True)
        if row.state == "ACCEPTED":
            return uploads.receipt(row, round_)
        uploads.require_open(tx, row)
        decision = _admit(tx, run, round_, client, row.sha256, row.created_at)
        assert isinstance(decision, machine.Accept), "another accepted upload of this round refuses this one"
        if round_.state == "COLLECTING":  # trained for an attempt that was abandoned, maybe
            rounds.join(tx, round_, client)
        uploads.accept(tx, row, decision.counts_in)
        transitions.accepted(tx, run, round_, decision.counts_in, settings.presence_window)
        return uploads.receipt(row, round_)
