"""Who is asking: the operator by its key, a client by the API key it got when it enrolled."""

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

from flexlora_server.api.services import Coordinator, of
from flexlora_server.database.queries import clients
from flexlora_server.database.schema import ApiKey
from flexlora_server.errors import Refusal, StartupError
from flexlora_server.settings import Settings
from flexlora_shared.problems import Code

OPERATOR_PREFIX = "flo"
OPERATOR_KEY_FILE = "operator.key"
SHORTEST_KEY = 16  # characters


@dataclass(frozen=True)
class Principal:
    """Who is asking, by which key; both are None for the operator."""

    client_id: str | None
    key_id: str | None = None


def operator_key(settings: Settings) -> tuple[str, Path | None]:
    """The operator's key, and the file it was generated into where none was given (mode 0600, made at the first start)."""
    if settings.operator_key is not None:
        key = settings.operator_key.get_secret_value().strip()
        if len(key) < SHORTEST_KEY:
            raise StartupError(
                "FLEXLORA_OPERATOR_KEY is shorter than 16 characters; give a long random one or leave it unset"
            )
        return key, None
    path = settings.data_dir / OPERATOR_KEY_FILE
    if not path.exists():
        _generate(path)
    key = path.read_text().strip()
    if len(key) < SHORTEST_KEY:
        raise StartupError(f"{path} holds no key; delete it, and the next start generates one")
    return key, path


def _generate(path: Path) -> None:
    """Write a new key, whole or not at all; where another process was first, its key stays."""
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


async def principal(request: Request) -> Principal:
    """Who is asking.

    Raises:
        Refusal: as `recognise`.
    """
    return await recognise(request, of(request).looking)


async def recognise(request: Request, threads: CapacityLimiter) -> Principal:
    """Who is asking; only a client's key costs one of these threads and a look at the database.

    Raises:
        Refusal: UNAUTHENTICATED, and as `ask`.
    """
    coordinator, secret = of(request), bearer(request)
    if secret and _is_operators(coordinator, secret):
        return Principal(None)
    key = await coordinator.ask(threads, _look_up, coordinator, secret)
    if key.used_at is None:  # this writes, and waits for its turn: not where others only look
        await coordinator.ask(coordinator.first_using, _first_use, coordinator, key)
    return Principal(key.client_id, key.id)


def _is_operators(coordinator: Coordinator, secret: str) -> bool:
    return hmac.compare_digest(clients.sha256(secret), coordinator.operator_sha256)


def identify(coordinator: Coordinator, secret: str | None) -> Principal:
    """`principal` for those who have a thread already.

    Raises:
        Refusal: UNAUTHENTICATED.
    """
    if secret and _is_operators(coordinator, secret):
        return Principal(None)
    key = _look_up(coordinator, secret)
    if key.used_at is None:
        _first_use(coordinator, key)
    return Principal(key.client_id, key.id)


def _look_up(coordinator: Coordinator, secret: str | None) -> ApiKey:
    """The client's key that this is."""
    if secret:
        with coordinator.store.reading() as tx:
            key = clients.authenticate(tx, secret)
        if key is not None:
            return key
    raise Refusal(
        Code.UNAUTHENTICATED,
        "Send your API key as `Authorization: Bearer KEY`; an unknown or revoked key is refused.",
        headers={"WWW-Authenticate": 'Bearer realm="flexlora"'},
    )


def _first_use(coordinator: Coordinator, key: ApiKey) -> None:
    with coordinator.store.transaction() as tx:
        clients.first_use(tx, key)


Anyone = Annotated[Principal, Depends(principal)]


def require_operator(who: Principal) -> Principal:
    """Only the operator passes."""
    if who.client_id is not None:
        raise Refusal(Code.FORBIDDEN, "Only the operator's key may do this.")
    return who


def require_client(who: Principal) -> str:
    """Only an enrolled client passes; its id."""
    if who.client_id is None:
        raise Refusal(Code.FORBIDDEN, "Only a participant's key may do this; the operator's key is not one.")
    return who.client_id


async def _operator(who: Anyone) -> Principal:
    return require_operator(who)  # on the loop: a thread would cost more


async def _client(who: Anyone) -> str:
    return require_client(who)


Operator = Annotated[Principal, Depends(_operator)]
ClientId = Annotated[str, Depends(_client)]
