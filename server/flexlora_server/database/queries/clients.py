"""Queries of enrolled clients, their API keys and the one-time tokens that enroll them.

A secret has the form `PREFIX_id_secret`: the id finds the row, the SHA-256 of the whole is compared in constant time. Only the
SHA-256 is stored; the secrets carry 256 random bits, so no slow hash is needed.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import func, select, update

from flexlora_server.database.queries import uploads
from flexlora_server.database.schema import ApiKey, Client, EnrollmentToken
from flexlora_server.database.timestamps import rfc3339
from flexlora_server.database.transactions import Tx
from flexlora_server.errors import Refusal
from flexlora_shared.messages.clients import Credentials, Enrollment, Token, TokenRequest
from flexlora_shared.problems import Code

_SECRET = re.compile(r"(?P<prefix>[a-z]{3})_(?P<id>[0-9a-f]{16})_")
CLIENT_PREFIX = "flc"
TOKEN_PREFIX = "flt"


def new_secret(prefix: str) -> tuple[str, str]:
    """A public id, and the secret that contains it."""
    public_id = secrets.token_hex(8)
    return public_id, f"{prefix}_{public_id}_{secrets.token_urlsafe(32)}"


def sha256(secret: str) -> str:
    """The SHA-256 of a secret, which is all that is stored of it."""
    return hashlib.sha256(secret.encode()).hexdigest()


def _public_id(secret: str, prefix: str) -> str | None:
    match = _SECRET.match(secret)
    return match["id"] if match is not None and match["prefix"] == prefix else None


def create_token(tx: Tx, request: TokenRequest) -> Token:
    """Create a token that enrolls one client, once."""
    public_id, secret = new_secret(TOKEN_PREFIX)
    expires = tx.now + timedelta(seconds=request.expires_in)
    tx.session.add(EnrollmentToken(id=public_id, sha256=sha256(secret), note=request.note, expires_at=expires))
    return Token(token=secret, expires_at=rfc3339(expires))


def enroll(tx: Tx, enrollment: Enrollment) -> Credentials:
    """Redeem a token.

    Raises:
        Refusal: TOKEN_INVALID, without telling an unknown token from a used one.
    """
    public_id = _public_id(enrollment.token, TOKEN_PREFIX)
    row = tx.session.get(EnrollmentToken, public_id, with_for_update=True) if public_id else None
    valid = row is not None and hmac.compare_digest(row.sha256, sha256(enrollment.token))
    if row is None or not valid or row.used_by is not None or row.expires_at <= tx.now:
        raise Refusal(
            Code.TOKEN_INVALID, "This enrollment token is unknown, used or expired; ask the operator for a new one."
        )
    client = Client(id=secrets.token_hex(8), name=enrollment.name, enrolled_at=tx.now)
    tx.session.add(client)
    tx.session.flush()
    row.used_by = client.id
    return _issue(tx, client)


def _issue(tx: Tx, client: Client) -> Credentials:
    public_id, secret = new_secret(CLIENT_PREFIX)
    tx.session.add(ApiKey(id=public_id, client_id=client.id, sha256=sha256(secret), created_at=tx.now))
    return Credentials(client_id=client.id, name=client.name, api_key=secret)


def rotate(tx: Tx, client_id: str) -> Credentials:
    """A new key. The old one ends when the new one is first used: an answer that was lost locks nobody out.

    Raises:
        Refusal: UNAUTHENTICATED where the client was revoked while it asked.
    """
    client = get(tx, client_id, lock=True)
    if client.revoked_at is not None:
        raise Refusal(Code.UNAUTHENTICATED, "This client was revoked; ask the operator to enroll it again.")
    return _issue(tx, client)


def find_key(tx: Tx, secret: str) -> ApiKey | None:
    """The client's key that this is; None for an unknown or revoked one."""
    public_id = _public_id(secret, CLIENT_PREFIX)
    row = tx.session.get(ApiKey, public_id) if public_id else None
    if row is None or not hmac.compare_digest(row.sha256, sha256(secret)) or row.revoked_at is not None:
        return None
    return row


def mark_first_use(tx: Tx, key: ApiKey) -> None:
    """A key has arrived with its client: the client's other keys end."""
    get(tx, key.client_id, lock=True)
    row = tx.session.get_one(ApiKey, key.id, populate_existing=True)
    if row.used_at is None and row.revoked_at is None:
        _revoke_keys(tx, key.client_id, but=key.id)
        row.used_at = tx.now


def get(tx: Tx, client_id: str, *, lock: bool = False) -> Client:
    """An enrolled client; `lock` lets changes of its keys queue up.

    Raises:
        Refusal: CLIENT_NOT_FOUND.
    """
    # no key update: whoever writes an upload of the client holds a share of its key, and may hold what a revocation waits for
    client = tx.session.get(Client, client_id, with_for_update={"key_share": True} if lock else None)
    if client is None:
        raise Refusal(
            Code.CLIENT_NOT_FOUND, f"No client has the id {client_id[:64]!r}; `flexlora-client clients list` shows all."
        )
    return client


def require_enrolled(tx: Tx, client_id: str) -> None:
    """Refuse a client that was revoked after its request was let in; a revocation waits until this transaction ends.

    Raises:
        Refusal: UNAUTHENTICATED.
    """
    client = tx.session.get(Client, client_id, with_for_update={"read": True}, populate_existing=True)
    if client is None or client.revoked_at is not None:
        raise Refusal(Code.UNAUTHENTICATED, "This client was revoked; ask the operator to enroll it again.")


def list_all(tx: Tx) -> Sequence[Client]:
    """All clients, oldest first."""
    return tx.session.scalars(select(Client).order_by(Client.enrolled_at, Client.id)).all()


def key_issue_times(tx: Tx) -> dict[str, datetime]:
    """When each client's newest key was issued, by client id."""
    newest = select(ApiKey.client_id, func.max(ApiKey.created_at).label("issued")).group_by(ApiKey.client_id)
    return {row.client_id: row.issued for row in tx.session.execute(newest)}


def revoke(tx: Tx, client_id: str) -> None:
    """End a client's keys; again is no error. Updates it had accepted before still count."""
    client = get(tx, client_id, lock=True)
    if client.revoked_at is None:
        client.revoked_at = tx.now
        _revoke_keys(tx, client_id)
        uploads.cancel_open_of_client(tx, client_id)


def _revoke_keys(tx: Tx, client_id: str, but: str = "") -> None:
    ending = update(ApiKey).where(ApiKey.client_id == client_id, ApiKey.id != but, ApiKey.revoked_at.is_(None))
    tx.session.execute(ending.values(revoked_at=tx.now))
    tx.changed = True
