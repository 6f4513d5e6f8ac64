"""Parses responses. Unknown fields are ignored, because the coordinator may be newer; known fields are validated strictly."""

from collections.abc import Mapping
from http.client import responses
from typing import TypeVar

from pydantic import ValidationError

from flexlora_client.coordinator_api.http_messages import Answer
from flexlora_client.errors import Unreachable
from flexlora_shared.messages.base import Message
from flexlora_shared.problems import PROBLEM_MEDIA_TYPE, Problem

M = TypeVar("M", bound=Message)
GATEWAY_STATUSES = frozenset({502, 503, 504, *range(520, 528)})  # 52x: Cloudflare's equivalents
PROXY_REASONS = {
    401: "it wants credentials of its own",
    403: "it does not let this call through",
    407: "it wants credentials of its own",
    408: "the call arrived too slowly for it",
    413: "it takes no body as long as this one; its operator must let bodies of up to 8 MiB through",
    429: "it takes no more calls just now",
    500: "it failed",
    507: "its disk is full",
}


def parse_message(kind: type[M], answer: Answer) -> M:
    """Parse the body as a message.

    Raises:
        Unreachable: it is no such message; not transient.
    """
    try:
        return kind.model_validate_json(answer.body, extra="ignore")
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the answer"
        more = f"; {error.error_count() - 1} more" if error.error_count() > 1 else ""
        reason = (
            f"the coordinator's {kind.__name__} is not the one of this version ({place}: {first['msg']}{more}); "
            "update the older side"
        )
        raise Unreachable(reason, transient=False) from None


def parse_problem(status: int, headers: Mapping[str, str], body: bytes) -> Problem | None:
    """The problem in a refusal, also one with an unknown code; None where a proxy or another program answered."""
    if not _is_problem(headers):
        return None
    try:
        problem = Problem.model_validate_json(body, extra="ignore")
    except ValidationError:
        return None  # a proxy's problem has no code; a refused HEAD has no body
    return problem.model_copy(update={"status": status})


def describe_status(url: str, status: int, headers: Mapping[str, str]) -> str:
    """A sentence, without a full stop, for a response that is no message of the protocol."""
    status_line = f"{status} {responses.get(status, '')}".strip()
    if "location" in headers:
        return f"{url} answered {status_line} and points to {headers['location']}; use that address"
    if _is_problem(headers):
        return f"{url} refused with {status_line} and gave no reason"
    if status in GATEWAY_STATUSES:
        return f"the proxy in front of {url} answered {status_line}: the coordinator behind it does not answer"
    if status in PROXY_REASONS:
        return f"the proxy in front of {url} answered {status_line}: {PROXY_REASONS[status]}"
    if status >= 500:
        return f"the proxy in front of {url} answered {status_line}"
    return f"{url} answered {status_line}, which is no answer of a FlexLoRA coordinator; check the address"


def _is_problem(headers: Mapping[str, str]) -> bool:
    return headers.get("content-type", "").split(";")[0] == PROBLEM_MEDIA_TYPE
