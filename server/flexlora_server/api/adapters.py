"""Routes of published adapters: slices with HTTP ranges, their PEFT configuration, and participants' evaluations."""

import re
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

from anyio import to_thread
from fastapi import Body, Query, Request, Response
from fastapi.responses import FileResponse
from pydantic import TypeAdapter, ValidationError

from flexlora_server.adapter_files.peft_config import adapter_config
from flexlora_server.api.auth import Anyone, ClientId
from flexlora_server.api.openapi_examples import EVALUATION
from flexlora_server.api.services import Services, get_services
from flexlora_server.api.strict_json import RoundPath, RunPath, problems, router
from flexlora_server.database.queries import adapters, events, runs
from flexlora_server.errors import Refusal
from flexlora_server.lifecycle.serve_slice import check_ranks, slice_blob
from flexlora_server.storage import Blob
from flexlora_shared.digests import digest_field
from flexlora_shared.messages.base import RankPattern
from flexlora_shared.messages.uploads import Evaluation
from flexlora_shared.problems import Code

routes = router("adapters")
RankQuery = Annotated[int, Query(ge=1, le=4096, description="an allowed rank", examples=[8])]
PatternQuery = Annotated[str, Query(max_length=65_536, description="JSON: module-name suffixes to ranks")]
_RANGE = re.compile(r"([0-9]{0,1000})-([0-9]{0,1000})")
_PATTERN_ADAPTER = TypeAdapter[dict[str, int]](RankPattern)
_REFUSALS = problems(Code.RUN_NOT_FOUND, Code.ADAPTER_NOT_PUBLISHED, Code.RANK_NOT_ALLOWED)
_ADAPTER = "/v1/runs/{run}/rounds/{number}/adapter"


def _parse_pattern(text: str) -> dict[str, int]:
    try:
        return _PATTERN_ADAPTER.validate_json(text, strict=True)
    except ValidationError:
        raise Refusal(
            Code.INVALID_REQUEST, 'pattern must be a JSON object of module-name suffixes to ranks, like {"q_proj": 16}.'
        ) from None


@routes.head(_ADAPTER, response_class=FileResponse, responses=_REFUSALS)
@routes.get(
    _ADAPTER,
    response_class=FileResponse,
    responses={
        200: {"description": "safetensors with PEFT's key names", "content": {"application/octet-stream": {}}},
        304: {"description": "`If-None-Match` names the slice's digest"},
        307: {"description": "the slice lies at `Location` for a while; `Repr-Digest` and `ETag` are its digest"},
        **_REFUSALS,
        **problems(Code.RANGE_NOT_SATISFIABLE),
    },
)
async def get_adapter(
    request: Request, name: RunPath, number: RoundPath, rank: RankQuery, who: Anyone, pattern: PatternQuery = "{}"
) -> Response:
    """The slice of a published round, as PEFT's `adapter_model.safetensors`."""
    services = get_services(request)
    find = partial(slice_blob, services.store, services.blobs, name, number, rank, _parse_pattern(pattern))
    serve = partial(_serve, request, services, partial(find, any_pattern=who.client_id is None))
    return await to_thread.run_sync(serve, limiter=services.slice_threads)


def _serve(request: Request, services: Services, find: Callable[[], Blob]) -> Response:
    blob = find()
    headers = {
        "ETag": f'"{blob.sha256}"',
        "Repr-Digest": digest_field(bytes.fromhex(blob.sha256)),
        "Cache-Control": "private, immutable, max-age=31536000",
    }
    if _etag_matches(request.headers.get("if-none-match"), blob.sha256):
        return Response(status_code=304, headers=headers)
    return _link_response(request, services, blob, headers) or _file_response(request, services, blob, headers)


def _link_response(request: Request, services: Services, blob: Blob, headers: dict[str, str]) -> Response | None:
    """A redirect to the object store, which serves the slice itself; None where it does not."""
    link = services.blobs.presigned_url(blob.sha256)
    if link is None:
        return None
    if request.method == "HEAD":  # the link is signed for GET
        return Response(headers=headers | {"Content-Length": str(blob.size)}, media_type="application/octet-stream")
    return Response(status_code=307, headers=headers | {"Location": link, "Cache-Control": "private, no-store"})


def _file_response(request: Request, services: Services, blob: Blob, headers: dict[str, str]) -> Response:
    _keep_satisfiable_ranges(request, blob)
    path = services.blobs.path(blob.sha256)
    if path.stat().st_size != blob.size:  # a damaged copy
        path = services.blobs.verified_path(blob.sha256)
    stat = path.stat()  # a missing file raises OSError here, which is answered as a storage fault
    return FileResponse(path, headers=headers, media_type="application/octet-stream", stat_result=stat)


def _etag_matches(header: str | None, sha256: str) -> bool:
    """RFC 9110, section 13.1.2."""
    tags = [tag.strip().removeprefix("W/") for tag in (header or "").split(",")]
    return "*" in tags or f'"{sha256}"' in tags


def _keep_satisfiable_ranges(request: Request, blob: Blob) -> None:
    """Rewrite the request's `Range` to the satisfiable ranges, or remove it: FileResponse answers others in plain text.

    Raises:
        Refusal: RANGE_NOT_SATISFIABLE.
    """
    ranges = _requested_ranges(request, blob)
    spans = [f"{span.start}-{span.stop - 1}" for span in ranges if span]
    if ranges and not spans:
        raise Refusal(
            Code.RANGE_NOT_SATISFIABLE,
            f"No range asked for lies in a file of {blob.size} bytes; ask for bytes=FIRST-LAST within it.",
            headers={"Content-Range": f"bytes */{blob.size}"},
            size=blob.size,
        )
    headers = [field for field in request.scope["headers"] if field[0] not in (b"range", b"if-range")]
    if spans:
        headers.append((b"range", f"bytes={','.join(spans)}".encode()))
    request.scope["headers"] = headers


def _requested_ranges(request: Request, blob: Blob) -> list[range]:
    """The requested ranges; none where `Range` must be ignored (RFC 9110, sections 13.1.5, 14.1.1 and 14.2)."""
    unit, _, spans = ",".join(request.headers.getlist("range")).partition("=")
    tag = f'"{blob.sha256}"'
    if request.method != "GET" or unit.lower() != "bytes" or request.headers.get("if-range", tag) != tag:
        return []
    stripped = [span.strip(" \t") for span in spans.split(",")]
    try:
        return [_parse_range(span, blob.size) for span in stripped if span]  # a list may have empty elements: 5.6.1.2
    except ValueError:
        return []


def _parse_range(span: str, size: int) -> range:
    """The positions that one range of the header selects in a file of `size` bytes, maybe none.

    Raises:
        ValueError: the range is malformed.
    """
    match = _RANGE.fullmatch(span)
    if match is None:
        raise ValueError(span)
    first, last = match.groups()
    if not first:
        return range(max(size - int(last), 0), size)
    if last and int(last) < int(first):
        raise ValueError(span)
    return range(int(first), min(int(last) + 1, size) if last else size)


@routes.get("/v1/runs/{run}/rounds/{number}/adapter-config", responses=_REFUSALS)
def get_adapter_config(
    request: Request, name: RunPath, number: RoundPath, rank: RankQuery, who: Anyone, pattern: PatternQuery = "{}"
) -> dict[str, Any]:
    """PEFT's `adapter_config.json` of the same slice."""
    ranks = _parse_pattern(pattern)
    with get_services(request).store.reading() as tx:
        spec = runs.spec_of(runs.get(tx, name))
        check_ranks(spec, rank, ranks)
        adapters.get_published(tx, name, number)
    return adapter_config(spec, rank, ranks)


@routes.post(
    "/v1/runs/{run}/rounds/{number}/evaluations",
    status_code=204,
    response_class=Response,
    responses=problems(Code.FORBIDDEN, Code.RUN_NOT_FOUND, Code.ADAPTER_NOT_PUBLISHED, Code.RANK_NOT_ALLOWED),
)
def report_evaluation(
    request: Request,
    name: RunPath,
    number: RoundPath,
    body: Annotated[Evaluation, Body(examples=[EVALUATION])],
    client: ClientId,
) -> None:
    """Metrics of a published slice on the participant's own held-out data; the latest report counts.

    Who has declared no rank in the run is an evaluator: its figures are told apart from those of participants that train.
    """
    with get_services(request).store.transaction() as tx:
        run = runs.lock(tx, name)
        check_ranks(runs.spec_of(run), body.rank, body.rank_pattern)
        adapters.get_published(tx, name, number)
        adapters.save_evaluation(tx, run, number, client, body)
        events.touch(tx, run)
