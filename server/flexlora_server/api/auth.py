"""Authenticates callers: the operator by its key, a client by the API key it got when it enrolled."""

import base64
import contextlib
import hmac
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from anyio import CapacityLimiter
from fastapi import Depends, Request

from flexlora_server.api.services import Services, get_services
from flexlora_server.database.queries import clients
from flexlora_server.database.schema import ApiKey
from flexlora_server.errors import Refusal, StartupError
from flexlora_server.settings import Settings
from flexlora_shared.problems import Code

OPERATOR_PREFIX = "flo"
OPERATOR_KEY_FILE = "operator.key"
MIN_KEY_CHARS = 16


@dataclass(frozen=True)
class Principal:
    """An authenticated caller: a client and the id of its key; both are None for the operator."""

    client_id: str | None
    key_id: str | None = None


def operator_key(settings: Settings) -> tuple[str, Path | None]:
    """The operator's key, and the file it was generated into (mode 0600, at the first start); None where the setting gives it."""
    if settings.operator_key is not None:
        key = settings.operator_key.get_secret_value().strip()
        if len(key) < MIN_KEY_CHARS:
            raise StartupError(
                "FLEXLORA_OPERATOR_KEY is shorter than 16 characters; give a long random one or leave it unset"
            )
        return key, None
    path = settings.data_dir / OPERATOR_KEY_FILE
    if not path.exists():
        _generate_key(path)
    key = path.read_text().strip()
    if len(key) < MIN_KEY_CHARS:
        raise StartupError(f"{path} holds no key; delete it, and the next start generates one")
    return key, path


def _generate_key(path: Path) -> None:
    """Write a new key atomically; where another process was first, its key stays."""
    _, fresh = clients.new_secret(OPERATOR_PREFIX)
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
            file.write(fresh + "\n")
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def bearer(request: Request) -> str | None:
    """The secret of `Authorization: Bearer SECRET`."""
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    return value.strip() if scheme.lower() == "bearer" else None


def password(request: Request) -> str | None:
    """The password that a browser sends by Basic authentication.

    For the status page alone: a browser sends it along unasked, so a call that changes something must not take it.
    """
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        return base64.b64decode(value, validate=True).decode().partition(":")[2]
    except ValueError:  # not base64, not ASCII, not UTF-8
        return None


async def authenticate(request: Request, secret: str | None, threads: CapacityLimiter) -> Principal:
    """Who sends this secret. A client's key is looked up in the database, in one of `threads`; the operator's costs neither.

    Raises:
        Refusal: UNAUTHENTICATED, and UNAVAILABLE as `Services.run_blocking`.
    """
    services = get_services(request)
    if secret and hmac.compare_digest(clients.sha256(secret), services.operator_sha256):
        return Principal(None)
    key = await services.run_blocking(threads, _find_key, services, secret)
    if key.used_at is None:  # this writes, and waits for its turn: not in the threads of calls that only read
        await services.run_blocking(services.first_use_threads, _mark_first_use, services, key)
    return Principal(key.client_id, key.id)


def confirm_client(services: Services, secret: str) -> str:
    """The client whose key this secret is now; for a caller that is in a thread already.

    Raises:
        Refusal: UNAUTHENTICATED.
    """
    key = _find_key(services, secret)
    if key.used_at is None:
        _mark_first_use(services, key)
    return key.client_id


def _find_key(services: Services, secret: str | None) -> ApiKey:
    """The client's key with this secret, as the database has it now."""
    if secret:
        with services.store.reading() as tx:
            key = clients.find_key(tx, secret)
        if key is not None:
            return key
    raise Refusal(
        Code.UNAUTHENTICATED,
        "Send your API key as `Authorization: Bearer KEY`; an unknown or revoked key is refused.",
        headers={"WWW-Authenticate": 'Bearer realm="flexlora"'},
    )


def _mark_first_use(services: Services, key: ApiKey) -> None:
    with services.store.transaction() as tx:
        clients.mark_first_use(tx, key)


async def _principal(request: Request) -> Principal:
    return await authenticate(request, bearer(request), get_services(request).lookup_threads)


Anyone = Annotated[Principal, Depends(_principal)]


def require_operator(who: Principal) -> Principal:
    """Let only the operator pass.

    Raises:
        Refusal: FORBIDDEN.
    """
    if who.client_id is not None:
        raise Refusal(Code.FORBIDDEN, "Only the operator's key may do this.")
    return who


def require_client(who: Principal) -> str:
    """Let only an enrolled client pass; its id.

    Raises:
        Refusal: FORBIDDEN.
    """
    if who.client_id is None:
        raise Refusal(Code.FORBIDDEN, "Only a participant's key may do this; the operator's key is not one.")
    return who.client_id


async def _operator(who: Anyone) -> Principal:
    return require_operator(who)  # async: FastAPI would run a plain function in a thread, which costs more


async def _client(who: Anyone) -> str:
    return require_client(who)


Operator = Annotated[Principal, Depends(_operator)]
ClientId = Annotated[str, Depends(_client)]
