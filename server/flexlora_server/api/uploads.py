"""Routes of uploads: announce, send parts, commit, cancel; modelled on the IETF resumable-upload draft."""

import hashlib
from contextlib import suppress
from functools import partial
from typing import Annotated, BinaryIO

from anyio import to_thread
from fastapi import Body, Header, Request, Response

from flexlora_server.api.auth import ClientId
from flexlora_server.api.openapi_examples import UPLOAD
from flexlora_server.api.receive_part import MAX_PART_BYTES, expect_empty_body, receive_body, run_to_completion
from flexlora_server.api.services import Services, get_services
from flexlora_server.api.strict_json import Instance, RoundPath, RunPath, UploadPath, problems, router
from flexlora_server.database.queries import uploads
from flexlora_server.database.schema import Upload
from flexlora_server.errors import Refusal
from flexlora_server.lifecycle import accept_upload
from flexlora_shared.digests import sha256_in
from flexlora_shared.messages.uploads import PART_MEDIA_TYPE, Receipt, UploadCreate, UploadStatus
from flexlora_shared.problems import Code

routes = router("uploads")
Offset = Annotated[int, Header(alias="Upload-Offset", ge=0, lt=2**46, description="where this part begins, in bytes")]
Complete = Annotated[str, Header(alias="Upload-Complete", pattern=r"^\?[01]$", description="?1 on the last part")]
ContentDigest = Annotated[
    str | None,
    Header(alias="Content-Digest", description="sha-256=:BASE64: of the part (RFC 9530); not needed without bytes"),
]
_UPLOAD_LIMIT = f"max-append-size={MAX_PART_BYTES}"
_HEAD_HEADERS = {"Cache-Control": "no-store", "Upload-Limit": _UPLOAD_LIMIT}
_OWNER_PROBLEMS = problems(Code.FORBIDDEN, Code.UPLOAD_NOT_FOUND)


@routes.post(
    "/v1/runs/{run}/rounds/{number}/uploads",
    status_code=201,
    responses=problems(
        Code.FORBIDDEN, Code.RUN_NOT_FOUND, Code.ROUND_NOT_FOUND, Code.NOT_ASSIGNED, Code.ROUND_NOT_COLLECTING, Code.SUPERSEDED,
        Code.ROUND_CLOSED, Code.ALREADY_ACCEPTED, Code.RANK_MISMATCH, Code.EXAMPLES_MISMATCH,
        Code.SIZE_IMPOSSIBLE,
    ),
)  # fmt: skip
async def create_upload(
    request: Request,
    response: Response,
    name: RunPath,
    number: RoundPath,
    body: Annotated[UploadCreate, Body(examples=[UPLOAD])],
    client: ClientId,
    instance: Instance = None,
) -> UploadStatus:
    """Announce an update. The same announcement again finds the open upload, another one replaces it."""
    services = get_services(request)
    open_upload = partial(accept_upload.announce, services.store, name, number, client, instance, body)
    status, replaced = await to_thread.run_sync(open_upload, limiter=services.announce_threads)
    if replaced is not None:
        await run_to_completion(services.storage_executor, accept_upload.delete_bytes, services.blobs, replaced)
    response.headers["Location"] = f"/v1/uploads/{status.id}"
    response.headers["Upload-Limit"] = _UPLOAD_LIMIT
    return status


@routes.head("/v1/uploads/{upload}", status_code=204, responses=_OWNER_PROBLEMS)
def upload_offset(request: Request, upload: UploadPath, client: ClientId) -> Response:
    """How many bytes have arrived."""
    with get_services(request).store.reading() as tx:
        row = uploads.get_owned(tx, upload, client)
    return Response(status_code=204, headers=_progress_headers(row.offset, row.size) | _HEAD_HEADERS)


def _progress_headers(offset: int, size: int) -> dict[str, str]:
    complete = "?1" if offset == size else "?0"
    return {"Upload-Offset": str(offset), "Upload-Complete": complete, "Upload-Length": str(size)}


@routes.patch(
    "/v1/uploads/{upload}",
    status_code=204,
    openapi_extra={"requestBody": {"required": True, "content": {PART_MEDIA_TYPE: {}}}},
    responses=_OWNER_PROBLEMS
    | problems(
        Code.OFFSET_MISMATCH, Code.UPLOAD_INCOMPLETE, Code.UPLOAD_BUSY, Code.ALREADY_ACCEPTED, Code.ROUND_CLOSED,
        Code.PART_DIGEST_MISMATCH, Code.TOO_LARGE, Code.UNSUPPORTED_MEDIA_TYPE, Code.TOO_SLOW, Code.STORAGE_FULL,
    ),
)  # fmt: skip
async def send_part(
    request: Request,
    upload: UploadPath,
    client: ClientId,
    offset: Offset,
    complete: Complete = "?0",
    content_digest: ContentDigest = None,
) -> Response:
    """One part, of at most 8 MiB. What arrived before a cut is kept: HEAD tells how much. A whole part is checked first."""
    services = get_services(request)
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != PART_MEDIA_TYPE:
        raise Refusal(Code.UNSUPPORTED_MEDIA_TYPE, f"Send parts as Content-Type: {PART_MEDIA_TYPE}.")
    sha256 = _announced_digest(request, content_digest)
    row = await services.run_blocking(services.lookup_threads, _require_writable, services, upload, client, offset)
    end = await _receive(request, services, row, sha256)
    if complete == "?1" and end != row.size:
        raise Refusal(
            Code.UPLOAD_INCOMPLETE,
            f"The part was marked as the last, but {end} of {row.size} bytes have arrived; send the rest.",
            headers=_progress_headers(end, row.size),
            offset=end,
        )
    return Response(status_code=204, headers=_progress_headers(end, row.size))


def _announced_digest(request: Request, header: str | None) -> bytes:
    """The part's SHA-256, from its header.

    Raises:
        Refusal: INVALID_REQUEST.
    """
    if header is None and request.headers.get("content-length") == "0":
        return hashlib.sha256().digest()
    try:
        return sha256_in(header or "")
    except ValueError:
        raise Refusal(
            Code.INVALID_REQUEST, "A part needs the header Content-Digest: sha-256=:BASE64: of its bytes (RFC 9530)."
        ) from None


def _require_writable(services: Services, upload: str, client: str, offset: int) -> Upload:
    with services.store.reading() as tx:
        row = uploads.get_owned(tx, upload, client)
        uploads.require_open(tx, row)
    if offset != row.offset:
        raise Refusal(
            Code.OFFSET_MISMATCH,
            f"The part begins at byte {offset}, the upload ends at {row.offset}; go on from there.",
            headers=_progress_headers(row.offset, row.size),
            offset=row.offset,
        )
    return row


def _open_file(services: Services, row: Upload) -> BinaryIO:
    """Open the upload's bytes for this request alone, at the offset of its row, which is read again under the lock."""

    def check_row(written: int) -> None:
        if written < row.offset:
            with services.store.transaction() as tx:
                uploads.shorten(tx, row.id, row.offset, written)
        _require_writable(services, row.id, row.client_id, row.offset)

    return services.blobs.uploads.open_part(row.id, row.offset, check_row)


async def _receive(request: Request, services: Services, row: Upload, sha256: bytes) -> int:
    """Write the part and acknowledge what arrived, also of a part that was cut off; the upload's new offset."""
    min_rate = services.settings.min_upload_rate
    if row.offset == row.size:  # an interrupted commit may have moved the bytes to a blob already: open no file
        await expect_empty_body(request, min_rate)
        return row.size
    file = await to_thread.run_sync(_open_file, services, row, limiter=services.open_threads)
    try:
        intact = await receive_body(request, file, min(MAX_PART_BYTES, row.size - row.offset), min_rate) == sha256
    except BaseException:
        await run_to_completion(services.storage_executor, _acknowledge, services, row, file)
        raise
    if intact:
        return await run_to_completion(services.storage_executor, _acknowledge, services, row, file)
    await run_to_completion(services.storage_executor, _undo, services, row, file)
    raise Refusal(
        Code.PART_DIGEST_MISMATCH,
        f"The part's bytes do not have the Content-Digest sent with them; send it again from byte {row.offset}.",
        headers=_progress_headers(row.offset, row.size),
        offset=row.offset,
    )


def _undo(services: Services, row: Upload, file: BinaryIO) -> None:
    """Truncate to the old offset and acknowledge nothing; where the disk fails to truncate, the next part does."""
    with suppress(OSError), file:
        services.blobs.uploads.discard_part(row.offset, file)


def _acknowledge(services: Services, row: Upload, file: BinaryIO) -> int:
    """Sync the bytes, then write the new offset; the file stays locked until the next request can read that offset."""
    incoming = services.blobs.uploads
    with file:
        end, part = incoming.finish_part(row.id, row.offset, file)
        try:
            with services.store.transaction() as tx:
                if not uploads.advance(tx, row.id, row.offset, end, part):
                    uploads.require_open(tx, tx.session.get_one(Upload, row.id))
                    raise Refusal(
                        Code.UPLOAD_BUSY, "Another request wrote to this upload; ask for its offset and go on."
                    )
        except Refusal:  # only then is it certain that no row names the part
            if part is not None:
                incoming.delete_part(part)
            raise
    return end


@routes.delete(
    "/v1/uploads/{upload}",
    status_code=204,
    response_class=Response,
    responses=_OWNER_PROBLEMS | problems(Code.ALREADY_ACCEPTED, Code.ROUND_CLOSED),
)
def cancel_upload(request: Request, upload: UploadPath, client: ClientId) -> None:
    """Cancel an open upload; its bytes are deleted."""
    services = get_services(request)
    with services.store.transaction() as tx:
        uploads.cancel(tx, uploads.get_owned(tx, upload, client))
    accept_upload.delete_bytes(services.blobs, upload)


@routes.put(
    "/v1/uploads/{upload}/commit",
    responses=_OWNER_PROBLEMS
    | problems(
        Code.UPLOAD_INCOMPLETE, Code.UPLOAD_BUSY, Code.DIGEST_MISMATCH, Code.INVALID_HEADER, Code.INVALID_TENSOR,
        Code.NOT_ASSIGNED, Code.ROUND_CLOSED, Code.ALREADY_ACCEPTED,
    ),
)  # fmt: skip
async def commit_upload(request: Request, upload: UploadPath, client: ClientId) -> Receipt:
    """Check digest and tensors, then count the update, in one transaction. The same commit again: the same receipt."""
    return await to_thread.run_sync(
        _commit, get_services(request), upload, client, limiter=get_services(request).commit_threads
    )


def _commit(services: Services, upload: str, client: str) -> Receipt:
    with services.blobs.uploads.lock(upload):
        return accept_upload.commit(services.store, services.blobs, services.settings, upload, client)
