"""Every refusal of the protocol: a stable code, its HTTP status and its title (RFC 9457).

The codes are public interface: programs switch on them. `docs/protocol.md` lists the same table and a test compares the two.
"""

from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

PROBLEM_MEDIA_TYPE = "application/problem+json"


class Code(StrEnum):
    """Stable problem codes; the value is what stands in the body's `code`."""

    # who you are
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    TOKEN_INVALID = "token-invalid"
    # what you named
    NOT_FOUND = "not-found"
    RUN_NOT_FOUND = "run-not-found"
    ROUND_NOT_FOUND = "round-not-found"
    CLIENT_NOT_FOUND = "client-not-found"
    UPLOAD_NOT_FOUND = "upload-not-found"
    ADAPTER_NOT_PUBLISHED = "adapter-not-published"
    METHOD_NOT_ALLOWED = "method-not-allowed"
    # what the state of things forbids
    RUN_EXISTS = "run-exists"
    RUN_STATE = "run-state"
    RUN_OVER = "run-over"
    ROUND_STATE = "round-state"
    NOT_DECLARED = "not-declared"
    SUPERSEDED = "superseded"
    NOT_ASSIGNED = "not-assigned"
    RANK_MISMATCH = "rank-mismatch"
    EXAMPLES_MISMATCH = "examples-mismatch"
    ROUND_NOT_COLLECTING = "round-not-collecting"
    ROUND_CLOSED = "round-closed"
    ALREADY_ACCEPTED = "already-accepted"
    OFFSET_MISMATCH = "offset-mismatch"
    UPLOAD_INCOMPLETE = "upload-incomplete"
    UPLOAD_BUSY = "upload-busy"
    # what you sent
    PROTOCOL_MISMATCH = "protocol-mismatch"
    INVALID_REQUEST = "invalid-request"
    INVALID_RUN = "invalid-run"
    RANK_NOT_ALLOWED = "rank-not-allowed"
    MODEL_MISMATCH = "model-mismatch"
    SIZE_IMPOSSIBLE = "size-impossible"
    DIGEST_MISMATCH = "digest-mismatch"
    PART_DIGEST_MISMATCH = "part-digest-mismatch"
    INVALID_HEADER = "invalid-header"
    INVALID_TENSOR = "invalid-tensor"
    TOO_LARGE = "too-large"
    UNSUPPORTED_MEDIA_TYPE = "unsupported-media-type"
    RANGE_NOT_SATISFIABLE = "range-not-satisfiable"
    TOO_SLOW = "too-slow"
    # what we cannot do just now
    STORAGE_FULL = "storage-full"
    UNAVAILABLE = "unavailable"
    INTERNAL = "internal"


class ProblemType(BaseModel):
    """One row of the problem table: HTTP status and a title that never changes."""

    model_config = ConfigDict(frozen=True)

    status: int
    title: str


PROBLEMS: dict[Code, ProblemType] = {
    code: ProblemType(status=status, title=title)
    for code, status, title in [
        (Code.UNAUTHENTICATED, 401, "No valid API key was sent"),
        (Code.FORBIDDEN, 403, "This key may not do that"),
        (Code.TOKEN_INVALID, 403, "The enrolment token is unknown, used or expired"),
        (Code.NOT_FOUND, 404, "There is nothing at this address"),
        (Code.RUN_NOT_FOUND, 404, "There is no such run"),
        (Code.ROUND_NOT_FOUND, 404, "The run has no such round"),
        (Code.CLIENT_NOT_FOUND, 404, "There is no such client"),
        (Code.UPLOAD_NOT_FOUND, 404, "There is no such upload"),
        (Code.ADAPTER_NOT_PUBLISHED, 404, "This round has published no adapter"),
        (Code.METHOD_NOT_ALLOWED, 405, "The address does not take this method"),
        (Code.RUN_EXISTS, 409, "A run of this name exists already"),
        (Code.RUN_STATE, 409, "The run's state does not allow this"),
        (Code.RUN_OVER, 410, "The run is over"),
        (Code.ROUND_STATE, 409, "The round's state does not allow this"),
        (Code.NOT_DECLARED, 409, "The client has declared no rank for this run"),
        (Code.SUPERSEDED, 409, "Another agent with this key has declared since"),
        (Code.NOT_ASSIGNED, 409, "The client has no assignment in this round"),
        (Code.RANK_MISMATCH, 409, "The upload's ranks are not the assigned ones"),
        (Code.EXAMPLES_MISMATCH, 409, "The upload counts more examples than its client declared"),
        (Code.ROUND_NOT_COLLECTING, 409, "The round does not collect uploads yet"),
        (Code.ROUND_CLOSED, 410, "The round no longer takes uploads"),
        (Code.ALREADY_ACCEPTED, 409, "Another update of this client was accepted in this round"),
        (Code.OFFSET_MISMATCH, 409, "The part does not begin where the upload ends"),
        (Code.UPLOAD_INCOMPLETE, 409, "Bytes of the upload are still missing"),
        (Code.UPLOAD_BUSY, 409, "Another request is writing to this upload"),
        (Code.PROTOCOL_MISMATCH, 400, "The client speaks another protocol"),
        (Code.INVALID_REQUEST, 422, "The request does not have the documented form"),
        (Code.INVALID_RUN, 422, "A run like this cannot work"),
        (Code.RANK_NOT_ALLOWED, 422, "The run does not allow this rank"),
        (Code.MODEL_MISMATCH, 422, "The base model is not the run's"),
        (Code.SIZE_IMPOSSIBLE, 422, "No upload of these ranks can have this size"),
        (Code.DIGEST_MISMATCH, 422, "The bytes received do not have the declared digest"),
        (Code.PART_DIGEST_MISMATCH, 422, "The bytes of the part do not have the digest sent with them"),
        (Code.INVALID_HEADER, 422, "The safetensors header is malformed"),
        (Code.INVALID_TENSOR, 422, "A tensor of the upload cannot be accepted"),
        (Code.TOO_LARGE, 413, "The request body is too large"),
        (Code.UNSUPPORTED_MEDIA_TYPE, 415, "The body has the wrong media type"),
        (Code.RANGE_NOT_SATISFIABLE, 416, "The requested byte range lies outside the file"),
        (Code.TOO_SLOW, 408, "The request body arrived too slowly"),
        (Code.STORAGE_FULL, 507, "The coordinator's storage is full"),
        (Code.UNAVAILABLE, 503, "The coordinator cannot serve this now"),
        (Code.INTERNAL, 500, "The coordinator failed; this is a defect"),
    ]
}


class Problem(BaseModel):
    """The body of every refusal (RFC 9457); `context` carries what a program needs to recover.

    `code` is a plain string where a newer coordinator refuses for a reason that this version has no name for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Annotated[str, Field(description="URN of the problem's kind, urn:flexlora:problem:CODE")]
    title: Annotated[str, Field(description="The kind in words; never changes")]
    status: Annotated[int, Field(description="HTTP status")]
    detail: Annotated[str, Field(description="What was wrong with this request and what to do, for people")]
    code: Annotated[Code | str, Field(union_mode="left_to_right", description="Stable code, for programs")]
    context: Annotated[dict[str, Any], Field(description="What a program needs to recover, by name")] = {}

    @classmethod
    def of(cls, code: Code, detail: str, **context: Any) -> "Problem":
        """The problem `code` with a sentence that says what was wrong and what to do."""
        known = PROBLEMS[code]
        return cls(
            type=f"urn:flexlora:problem:{code}",
            title=known.title,
            status=known.status,
            detail=detail,
            code=code,
            context=context,
        )
