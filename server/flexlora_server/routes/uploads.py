"""Sending an update: announce it, send its bytes in parts, commit it. On the model of the IETF resumable-upload draft."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, BinaryIO, ParamSpec, TypeVar

from fastapi import Body, Header, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from flexlora_server import submission
from flexlora_server.auth import ClientId
from flexlora_server.blobs import append, busy, hold
from flexlora_server.coordinator import Coordinator, of
from flexlora_server.errors import Refusal
from flexlora_server.records import uploads
from flexlora_server.routes.examples import UPLOAD
from flexlora_server.routes.strict import RoundPath, RunPath, UploadPath, problems, router
from flexlora_server.tables import Upload
from flexlora_shared.messages.uploads import PART_MEDIA_TYPE, Receipt, UploadCreate, UploadStatus
from flexlora_shared.problems import Code

routes = router("uploads")
PART_LIMIT = 8 << 20  # bytes of one part
BUFFER = 1 << 20  # bytes gathered before they go to the disk
GRACE = 10.0  # seconds before the least rate is asked for
Offset = Annotated[int, Header(alias="Upload-Offset", ge=0, lt=2**46, description="where this part begins, in bytes")]
Complete = Annotated[str, Header(alias="Upload-Complete", pattern=r"^\?[01]$", description="?1 on the last part")]
P = ParamSpec("P")
T = TypeVar("T")
_OWN = problems(Code.FORBIDDEN, Code.UPLOAD_NOT_FOUND)


@routes.post(
    "/v1/runs/{run}/rounds/{number}/uploads",
    status_code=201,
    responses=problems(
        Code.FORBIDDEN, Code.RUN_NOT_FOUND, Code.ROUND_NOT_FOUND, Code.NOT_ASSIGNED, Code.ROUND_NOT_COLLECTING,
        Code.ROUND_CLOSED, Code.ALREADY_ACCEPTED, Code.RANK_MISMATCH, Code.SIZE_IMPOSSIBLE,
    ),
)  # fmt: skip
def create_upload(
    request: Request,
    response: Response,
    name: RunPath,
    number: RoundPath,
    told: Annotated[UploadCreate, Body(examples=[UPLOAD])],
    client: ClientId,
) -> UploadStatus:
    """Announce an update. The same announcement again finds the open upload, another one replaces it."""
    coordinator = of(request)
    status = submission.announce(coordinator.store, coordinator.blobs, name, number, client, told)
    response.headers["Location"] = f"/v1/uploads/{status.id}"
    return status


@routes.head("/v1/uploads/{upload}", status_code=204, responses=_OWN)
def upload_offset(request: Request, upload: UploadPath, client: ClientId) -> Response:
    """How many bytes have arrived."""
    with of(request).store.reading() as tx:
        row = uploads.owned(tx, upload, client)
    return Response(status_code=204, headers=_progress(row.offset, row.size) | {"Cache-Control": "no-store"})


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
        Code.TOO_LARGE, Code.UNSUPPORTED_MEDIA_TYPE, Code.TOO_SLOW, Code.STORAGE_FULL,
    ),
)  # fmt: skip
async def send_part(
    request: Request, upload: UploadPath, client: ClientId, offset: Offset, complete: Complete = "?0"
) -> Response:
    """One part, of at most 8 MiB. What arrived before a cut is kept: HEAD tells how much."""
    coordinator = of(request)
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != PART_MEDIA_TYPE:
        raise Refusal(Code.UNSUPPORTED_MEDIA_TYPE, f"Send parts as Content-Type: {PART_MEDIA_TYPE}.")
    row = await run_in_threadpool(_writable, coordinator, upload, client, offset)
    end = await _receive(request, coordinator, row)
    if complete == "?1" and end != row.size:
        raise Refusal(
            Code.UPLOAD_INCOMPLETE,
            f"The part was marked as the last, but {end} of {row.size} bytes have arrived; send the rest.",
            headers=_progress(end, row.size),
            offset=end,
        )
    return Response(status_code=204, headers=_progress(end, row.size))


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
    path = coordinator.blobs.partial(row.id)
    try:
        file = hold(path, create=row.offset == 0)
    except FileNotFoundError:
        raise busy() from None
    try:
        _writable(coordinator, row.id, row.client_id, row.offset)
        append(file, row.offset)
    except BaseException:
        if file.seek(0, os.SEEK_END) == 0:  # made by `hold` for an upload that has ended or moved
            path.unlink(missing_ok=True)
        file.close()
        raise
    return file


async def _receive(request: Request, coordinator: Coordinator, row: Upload) -> int:
    """Stream the part to the disk and acknowledge what arrived, also where it was cut; where the upload ends now."""
    if row.offset == row.size:  # the bytes may be a blob already, by a commit that was cut short: touch nothing
        await _nothing(request, coordinator.settings.min_upload_rate)
        return row.size
    file = await run_in_threadpool(_opened, coordinator, row)
    try:
        await _stream(request, file, min(PART_LIMIT, row.size - row.offset), coordinator.settings.min_upload_rate)
    finally:
        end = await _to_the_end(_acknowledge, coordinator, row, file)
    return end


async def _to_the_end(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run in a thread and wait until it is done, also where the request is cancelled: that goes on afterwards."""
    running = asyncio.get_running_loop().run_in_executor(None, partial(work, *args, **kwargs))
    cancelled: asyncio.CancelledError | None = None
    while not running.done():
        try:
            await asyncio.wait([running])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    return running.result()


@asynccontextmanager
async def _patience(least_rate: int) -> AsyncIterator[asyncio.Timeout]:
    """How long the sender of a part is waited for; a sender that is too slow or gone gets its problem."""
    try:
        async with asyncio.timeout(GRACE if least_rate else None) as timeout:
            yield timeout
    except TimeoutError:
        raise Refusal(
            Code.TOO_SLOW, f"Fewer than {least_rate} bytes a second arrived; what came is kept, go on from the offset."
        ) from None
    except ClientDisconnect:
        raise Refusal(Code.UPLOAD_INCOMPLETE, "The connection was cut; what came is kept.") from None


async def _nothing(request: Request, least_rate: int) -> None:
    async with _patience(least_rate):
        async for chunk in request.stream():
            if chunk:
                raise Refusal(Code.TOO_LARGE, "All bytes that were announced have arrived; commit the upload.")


async def _stream(request: Request, file: BinaryIO, room: int, least_rate: int) -> None:
    loop = asyncio.get_running_loop()
    started, received, buffer = loop.time(), 0, bytearray()
    try:
        async with _patience(least_rate) as patience:
            async for chunk in request.stream():
                received += len(chunk)
                if received > room:
                    raise Refusal(
                        Code.TOO_LARGE,
                        f"The part exceeds {room} bytes: parts hold at most {PART_LIMIT}, and no more than announced.",
                    )
                if least_rate:
                    patience.reschedule(started + GRACE + received / least_rate)
                buffer += chunk
                if len(buffer) >= BUFFER:
                    part, buffer = bytes(buffer), bytearray()  # swapped first: a cancelled request wrote it once
                    await _to_the_end(file.write, part)
    finally:
        if received <= room:
            file.write(buffer)


def _acknowledge(coordinator: Coordinator, row: Upload, file: BinaryIO) -> int:
    """Bytes are on the disk before they are acknowledged, and held until the next request can see the new offset."""
    with file:
        file.flush()
        os.fsync(file.fileno())
        end = file.tell()
        with coordinator.store.transaction() as tx:
            if not uploads.advance(tx, row.id, row.offset, end):
                uploads.require_open(tx, tx.session.get_one(Upload, row.id))
                raise Refusal(Code.UPLOAD_BUSY, "Another request wrote to this upload; ask for its offset and go on.")
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
    coordinator.blobs.drop(upload)


@routes.put(
    "/v1/uploads/{upload}/commit",
    responses=_OWN
    | problems(
        Code.UPLOAD_INCOMPLETE, Code.UPLOAD_BUSY, Code.DIGEST_MISMATCH, Code.INVALID_HEADER, Code.INVALID_TENSOR,
        Code.NOT_ASSIGNED, Code.ROUND_CLOSED, Code.ALREADY_ACCEPTED,
    ),
)  # fmt: skip
def commit_upload(request: Request, upload: UploadPath, client: ClientId) -> Receipt:
    """Check digest and tensors, then count the update, in one transaction. The same commit again: the same receipt."""
    coordinator = of(request)
    with coordinator.blobs.exclusive(upload):
        return submission.commit(coordinator.store, coordinator.blobs, coordinator.settings, upload, client)
