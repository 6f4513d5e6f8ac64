"""Announces, checks and accepts uploads: an upload is complete and inspected before one transaction accepts it."""

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
from flexlora_server.lifecycle.find_task import require_newest_agent
from flexlora_server.lifecycle.validation import check_announcement, check_examples
from flexlora_server.settings import Settings
from flexlora_server.storage import BlobStore, digest
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.messages.uploads import Receipt, UploadCreate, UploadStatus
from flexlora_shared.problems import Code


def announce(
    store: Store, name: str, number: int, client: str, instance: str | None, announcement: UploadCreate
) -> tuple[UploadStatus, str | None]:
    """Open an upload for the round, or find the open one; and the id of an upload that it replaces, whose bytes may be deleted.

    Raises:
        Refusal: what the state machine, `check_announcement` or `require_newest_agent` refuses.
    """
    with store.transaction() as tx:
        run = runs.lock(tx, name)
        round_ = rounds.latest(tx, name, number)
        clients.require_enrolled(tx, client)
        require_newest_agent(tx, name, client, instance)
        open_ = uploads.find_announced(tx, round_, client, announcement)
        announced_at = None if open_ is None else open_.created_at
        if isinstance(_admit(tx, run, round_, client, announcement.sha256, announced_at), machine.Repeat):
            accepted = uploads.find_accepted(tx, round_, client)
            assert accepted is not None, "what is repeated was accepted"
            return uploads.status(accepted, round_), None
        assignment = rounds.find_assignment(tx, round_, client)
        assert assignment is not None, "admitted uploads are assigned"
        spec = runs.spec_of(run)
        check_announcement(spec, number, assignment, announcement)
        declaration = rounds.declaration_of(tx, name, client)
        assert declaration is not None, "only declared participants are assigned"
        check_examples(spec, declaration, announcement)
        rounds.clear_failure(tx, run, round_, client)
        row, replaced = uploads.announce(tx, round_, client, announcement)
        return uploads.status(row, round_), None if replaced is None else replaced.id


def _admit(
    tx: Tx, run: Run, round_: Round, client: str, sha256: str, announced_at: datetime | None = None
) -> machine.Accept | machine.Repeat:
    """Whether the upload may count, and in which round.

    Raises:
        Refusal: what the state machine refuses.
    """
    accepted = uploads.find_accepted(tx, round_, client)
    candidate = machine.Candidate(
        sha256=sha256,
        assigned=rounds.find_assignment(tx, round_, client) is not None,
        announced=announced_at is not None and round_.deadline is not None and announced_at < round_.deadline,
        accepted_sha256=accepted.sha256 if accepted else None,
        rolled_back=max(rounds.rollbacks(tx, run.name), default=0) >= round_.number,
    )
    decision = machine.admit(
        runs.spec_of(run), rounds.round_view(tx, run, round_), candidate, rounds.next_open_number(tx, round_), tx.now
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
        row = uploads.get_owned(tx, upload, client)
        round_ = tx.session.get_one(Round, row.round_id)
        if row.state == "ACCEPTED":
            return uploads.receipt(row, round_)
        uploads.require_open(tx, row)
        run = runs.get(tx, round_.run)
        _admit(tx, run, round_, client, row.sha256, row.created_at)
        previous = adapters.get_published(tx, run.name, round_.number - 1)
    if row.offset != row.size:
        raise _incomplete_error(row.offset, row.size)
    try:
        with blobs.uploads.assembled(upload, row.parts or (), row.sha256) as path:
            _check_bytes(path, runs.spec_of(run), row, NumpyGlobalAdapter(blobs.path(previous.sha256)))
            blobs.publish_file(path, row.sha256)
    except Refusal:
        _cancel_upload(store, blobs, upload, client)
        raise
    except FileNotFoundError:
        return _resolve_missing_bytes(store, blobs, row)
    with blobs.protect_from_collection([row.sha256]):
        receipt = _accept(store, settings, upload, client)
    delete_bytes(blobs, upload)
    return receipt


def _resolve_missing_bytes(store: Store, blobs: BlobStore, row: Upload) -> Receipt:
    """Resolve a commit that found bytes missing: another commit has moved them, or the upload has ended, or they are lost.

    Raises:
        Refusal: the upload has ended, or UPLOAD_INCOMPLETE where its bytes are lost and must be sent again.
    """
    lost = blobs.uploads.is_incomplete(row.id, row.parts or (), row.sha256)
    with store.transaction() as tx:
        current = uploads.get_owned(tx, row.id, row.client_id)
        if current.state == "ACCEPTED":
            return uploads.receipt(current, tx.session.get_one(Round, current.round_id))
        uploads.require_open(tx, current)
        if lost:
            uploads.shorten(tx, row.id, row.offset, 0)
    if not lost:
        raise FileNotFoundError(f"the upload {row.id} is whole, but the adapter it is checked against is missing")
    raise _incomplete_error(0, row.size)


def _incomplete_error(offset: int, size: int) -> Refusal:
    return Refusal(
        Code.UPLOAD_INCOMPLETE,
        f"{offset} of {size} bytes have arrived; send the rest, then commit.",
        headers={"Upload-Offset": str(offset)},
        offset=offset,
    )


def delete_bytes(blobs: BlobStore, upload: str) -> None:
    """Delete the bytes of an upload that is over."""
    with suppress(OSError):  # the transaction is committed; `garbage_collector` deletes what is left
        blobs.uploads.delete(upload)


def _check_bytes(path: Path, spec: RunSpec, row: Upload, previous: NumpyGlobalAdapter) -> None:
    sha256 = digest(path)
    if sha256 != row.sha256:
        raise Refusal(
            Code.DIGEST_MISMATCH,
            f"The bytes received have SHA-256 {sha256}, {row.sha256} was announced; create the upload again.",
            received=sha256,
        )
    check_upload(path, spec, UploadCreate.model_validate(row.announced), previous)


def _cancel_upload(store: Store, blobs: BlobStore, upload: str, client: str) -> None:
    with store.transaction() as tx:
        uploads.cancel(tx, uploads.get_owned(tx, upload, client))
    delete_bytes(blobs, upload)


def _accept(store: Store, settings: Settings, upload: str, client: str) -> Receipt:
    with store.transaction() as tx:
        unlocked = tx.session.get_one(Round, uploads.get_owned(tx, upload, client).round_id)
        run = runs.lock(tx, unlocked.run)
        row = uploads.get_owned(tx, upload, client)
        round_ = tx.session.get_one(Round, row.round_id, populate_existing=True)
        if row.state == "ACCEPTED":
            return uploads.receipt(row, round_)
        uploads.require_open(tx, row)
        decision = _admit(tx, run, round_, client, row.sha256, row.created_at)
        assert isinstance(decision, machine.Accept), "another accepted upload of this round refuses this one"
        if round_.state == "COLLECTING":  # trained for an attempt that was abandoned, maybe
            rounds.carry_assignment(tx, round_, client)
        rounds.clear_failure(tx, run, round_, client)  # it failed after it had announced this
        uploads.accept(tx, row, decision.counts_in)
        transitions.record_accepted_update(tx, run, round_, decision.counts_in, settings.presence_window)
        return uploads.receipt(row, round_)
