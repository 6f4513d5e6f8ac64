"""Turns exceptions into problem responses.

An exception that is not listed in `install` is a defect: it is answered `internal`, and the body says nothing of it.
"""

import errno
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException

from flexlora_server.errors import Conflict, PluginUnusable, Refusal
from flexlora_shared.problems import PROBLEM_MEDIA_TYPE, Code, Problem
from flexlora_shared.versions import version_headers

log = logging.getLogger("flexlora.server")

_BY_STATUS = {
    404: Code.NOT_FOUND,
    405: Code.METHOD_NOT_ALLOWED,
    413: Code.TOO_LARGE,
    415: Code.UNSUPPORTED_MEDIA_TYPE,
    416: Code.RANGE_NOT_SATISFIABLE,
}


def problem_response(problem: Problem, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The problem as an HTTP response."""
    return JSONResponse(
        problem.model_dump(mode="json"), problem.status, headers=dict(headers or {}), media_type=PROBLEM_MEDIA_TYPE
    )


def install(app: FastAPI) -> None:
    """Register the handlers."""
    app.add_exception_handler(Refusal, _on_refusal)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(HTTPException, _on_http_error)
    for kind in (OperationalError, InterfaceError, PoolTimeout):
        app.add_exception_handler(kind, _on_database_error)
    app.add_exception_handler(OSError, _on_storage_error)
    app.add_exception_handler(Conflict, _on_conflict)
    app.add_exception_handler(PluginUnusable, _on_unusable_plugin)
    app.add_exception_handler(Exception, _on_defect)


async def _on_refusal(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Refusal)
    return problem_response(error.problem, error.headers)


async def _on_invalid_request(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    faults = _faults(error.errors())
    where = "; ".join(f"{fault['at']}: {fault['why']}" for fault in faults[:3])
    return problem_response(
        Problem.of(Code.INVALID_REQUEST, f"{where}. The form is shown at /docs.", faults=faults[:20])
    )


def _faults(errors: Sequence[Any]) -> list[dict[str, str]]:
    return [{"at": ".".join(str(part) for part in item["loc"])[:200], "why": str(item["msg"])[:300]} for item in errors]


async def _on_http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = _BY_STATUS.get(error.status_code, Code.INVALID_REQUEST)
    detail = {
        Code.NOT_FOUND: f"There is nothing at {request.url.path}; the addresses are listed at /docs.",
        Code.METHOD_NOT_ALLOWED: f"{request.url.path} does not take {request.method}; see /docs.",
        Code.TOO_LARGE: "The body is larger than this address takes.",
    }.get(code, str(error.detail))
    return problem_response(Problem.of(code, detail), error.headers)


async def _on_database_error(request: Request, error: Exception) -> JSONResponse:
    if "database or disk is full" in str(error):  # SQLite's words for ENOSPC
        return await _on_storage_error(request, OSError(errno.ENOSPC, str(error)))
    log.error("the database does not answer: %s", error)
    detail = "The database does not answer just now; nothing was changed. Try again."
    return problem_response(Problem.of(Code.UNAVAILABLE, detail), {"Retry-After": "5"})


async def _on_storage_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, OSError)
    log.error("storage failed: %s", error)
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        code, detail = Code.STORAGE_FULL, "The coordinator's disk is full; nothing was accepted. Try again later."
    else:
        code, detail = Code.UNAVAILABLE, "The coordinator's storage does not answer; nothing was accepted. Try again."
    return problem_response(Problem.of(code, detail), {"Retry-After": "30"})


async def _on_unusable_plugin(request: Request, error: Exception) -> JSONResponse:
    """Of a run that was defined when the package was there; agents wait until it is installed again."""
    log.error("a plug-in of a run is missing: %s", error)
    detail = f"The coordinator cannot work on this run now: {error}. Nothing was changed; its operator can install the package."
    return problem_response(Problem.of(Code.UNAVAILABLE, detail), {"Retry-After": "30"})


async def _on_conflict(request: Request, error: Exception) -> JSONResponse:
    detail = "This has changed while it was decided on; nothing was written. Try again."
    return problem_response(Problem.of(Code.UNAVAILABLE, detail), {"Retry-After": "1"})


async def _on_defect(request: Request, error: Exception) -> JSONResponse:
    # uvicorn logs the traceback
    log.error("%s %s failed: %s", request.method, request.url.path, type(error).__name__)
    detail = "The coordinator failed; its log says why. Nothing was accepted."
    # The server closes the connection after a defect: say so, or the next request on it is lost.
    # This response is made outside of every middleware, so it needs the version headers here.
    return problem_response(Problem.of(Code.INTERNAL, detail), {"Connection": "close", **version_headers()})
