"""Sending an update: announce it, send its bytes in parts, commit it. On the model of the IETF resumable-upload draft."""

import hashlib
from contextlib import suppress
from functools import partial
from typing import Annotated, BinaryIO

from anyio import to_thread
from fastapi import Body, Header, Request, Response

from flexlora_server.api.auth import ClientId
from flexlora_server.api.openapi_examples import UPLOAD
from flexlora_server.api.receive_part import PART_LIMIT, nothing, stream, to_the_end
from flexlora_server.api.services import Coordinator, of
from flexlora_server.api.strict_json import RoundPath, RunPath, UploadPath, problems, router
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
_LIMIT = f"max-append-size={PART_LIMIT}"
_HEAD = {"Cache-Control": "no-store", "Upload-Limit": _LIMIT}
_OWN = problems(Code.FORBIDDEN, Code.UPLOAD_NOT_FOUND)


@routes.post(
    "/v1/runs/{run}/rounds/{number}/uploads",
    status_code=201,
    responses=problems(
        Code.FORBIDDEN, Code.RUN_NOT_FOUND, Code.ROUND_NOT_FOUND, Code.NOT_ASSIGNED, Code.ROUND_NOT_COLLECTING,
        Code.ROUND_CLOSED, Code.ALREADY_ACCEPTED, Code.RANK_MISMATCH, Code.SIZE_IMPOSSIBLE,
    ),
)  # fmt: skip
async def create_upload(
    request: Request,
    response: Response,
    name: RunPath,
    number: RoundPath,
    told: Annotated[UploadCreate, Body(examples=[UPLOAD])],
    client: ClientId,
) -> UploadStatus:
    """Announce an update. The same announcement again finds the open upload, another one replaces it."""
    coordinator = of(request)
    announce = partial(accept_upload.announce, coordinator.store, name, number, client, told)
    status, replaced = await to_thread.run_sync(announce, limiter=coordinator.announcing)
    if replaced is not None:
        await to_the_end(coordinator.keeping, accept_upload.drop, coordinator.blobs, replaced)
    response.headers["Location"] = f"/v1/uploads/{status.id}"
    response.headers["Upload-Limit"] = _LIMIT
    return status


@routes.head("/v1/uploads/{upload}", status_code=204, responses=_OWN)
def upload_offset(request: Request, upload: UploadPath, client: ClientId) -> Response:
    """How many bytes have arrived."""
    with of(request).store.reading() as tx:
        row = uploads.owned(tx, upload, client)
    return Response(status_code=204, headers=_progress(row.offset, row.size) | _HEAD)


def _progress(offset: int, size: int) -> dict[str, str]:
    complete = "?1" if offset == size else "?0"
    return {"Upload-Offset": str(offset), "Upload-Complete": complete, "Upload-Length": str(size)}


@routes.patch(
    "/v1/uploads/{upload}",
    status_code=204,
    openapi_extra={"requestBody": {"required": True, "content": {PART_MEDIA_TYPE: {}}}},
    responses=_OWN
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
    coordinator = of(request)
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != PART_MEDIA_TYPE:
        raise Refusal(Code.UNSUPPORTED_MEDIA_TYPE, f"Send parts as Content-Type: {PART_MEDIA_TYPE}.")
    sha256 = _announced(request, content_digest)
    row = await coordinator.ask(coordinator.looking, _writable, coordinator, upload, client, offset)
    end = await _receive(request, coordinator, row, sha256)
    if complete == "?1" and end != row.size:
        raise Refusal(
            Code.UPLOAD_INCOMPLETE,
            f"The part was marked as the last, but {end} of {row.size} bytes have arrived; send the rest.",
            headers=_progress(end, row.size),
            offset=end,
        )
    return Response(status_code=204, headers=_progress(end, row.size))


def _announced(request: Request, header: str | None) -> bytes:
    """The part's SHA-256, as told before it."""
    if header is None and request.headers.get("content-length") == "0":
        return hashlib.sha256().digest()
    try:
        return sha256_in(header or "")
    except ValueError:
        raise Refusal(
            Code.INVALID_REQUEST, "A part needs the header Content-Digest: sha-256=:BASE64: of its bytes (RFC 9530)."
        ) from None


def _writable(coordinator: Coordinator, upload: str, client: str, offset: int) -> Upload:
    with coordinator.store.reading() as tx:
        row = uploads.owned(tx, upload, client)
        uploads.require_open(tx, row)
    if offset != row.offset:
        raise Refusal(
            Code.OFFSET_MISMATCH,
            f"The part begins at byte {offset}, the upload ends at {row.offset}; go on from there.",
            headers=_progress(row.offset, row.size),
            offset=row.offset,
        )
    return row


def _opened(coordinator: Coordinator, row: Upload) -> BinaryIO:
    """The upload's bytes, held by this request, at the offset that its row has now that nobody else can move it."""

    def check(there: int) -> None:
        if there < row.offset:
            with coordinator.store.transaction() as tx:
                uploads.shorten(tx, row.id, row.offset, there)
        _writable(coordinator, row.id, row.client_id, row.offset)

    return coordinator.blobs.uploads.open_part(row.id, row.offset, check)


async def _receive(request: Request, coordinator: Coordinator, row: Upload, sha256: bytes) -> int:
    """Stream the part to the disk and acknowledge what arrived, also where it was cut; where the upload ends now."""
    least_rate = coordinator.settings.min_upload_rate
    if row.offset == row.size:  # the bytes may be a blob already, by a commit that was cut short: touch nothing
        await nothing(request, least_rate)
        return row.size
    file = await to_thread.run_sync(_opened, coordinator, row, limiter=coordinator.opening)
    try:
        sound = await stream(request, file, min(PART_LIMIT, row.size - row.offset), least_rate) == sha256
    except BaseException:
        await to_the_end(coordinator.keeping, _acknowledge, coordinator, row, file)
        raise
    if sound:
        return await to_the_end(coordinator.keeping, _acknowledge, coordinator, row, file)
    await to_the_end(coordinator.keeping, _undo, coordinator, row, file)
    raise Refusal(
        Code.PART_DIGEST_MISMATCH,
        f"The part's bytes do not have the Content-Digest sent with them; send it again from byte {row.offset}.",
        headers=_progress(row.offset, row.size),
        offset=row.offset,
    )


def _undo(coordinator: Coordinator, row: Upload, file: BinaryIO) -> None:
    """Keep nothing, acknowledge nothing: what a disk that fails does not let go of, the next part cuts off."""
    with suppress(OSError), file:
        coordinator.blobs.uploads.discard_part(row.offset, file)


def _acknowledge(coordinator: Coordinator, row: Upload, file: BinaryIO) -> int:
    """Bytes are durable before they are acknowledged, and held until the next request can see the new offset."""
    incoming = coordinator.blobs.uploads
    with file:
        end, part = incoming.finish_part(row.id, row.offset, file)
        try:
            with coordinator.store.transaction() as tx:
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
    responses=_OWN | problems(Code.ALREADY_ACCEPTED, Code.ROUND_CLOSED),
)
def cancel_upload(request: Request, upload: UploadPath, client: ClientId) -> None:
    """Cancel an open upload; its bytes are deleted."""
    coordinator = of(request)
    with coordinator.store.transaction() as tx:
        uploads.cancel(tx, uploads.owned(tx, upload, client))
    accept_upload.drop(coordinator.blobs, upload)


@routes.put(
    "/v1/uploads/{upload}/commit",
    responses=_OWN
    | problems(
        Code.UPLOAD_INCOMPLETE, Code.UPLOAD_BUSY, Code.DIGEST_MISMATCH, Code.INVALID_HEADER, Code.INVALID_TENSOR,
        Code.NOT_ASSIGNED, Code.ROUND_CLOSED, Code.ALREADY_ACCEPTED,
    ),
)  # fmt: skip
async def commit_upload(request: Request, upload: UploadPath, client: ClientId) -> Receipt:
    """Check digest and tensors, then count the update, in one transaction. The same commit again: the same receipt."""
    return await to_thread.run_sync(_commit, of(request), upload, client, limiter=of(request).committing)


def _commit(coordinator: Coordinator, upload: str, client: str) -> Receipt:
    with coordinator.blobs.uploads.lock(upload):
        return accept_upload.commit(coordinator.store, coordinator.blobs, coordinator.settings, upload, client)
