"""Caches which API keys the database has confirmed: enough to keep a request waiting, never to give anything out."""

from collections.abc import Collection
from dataclasses import dataclass

from flexlora_server.database.queries.clients import sha256


@dataclass(frozen=True)
class CachedKey:
    """A key that the database has confirmed: its id and the client it belongs to."""

    key_id: str
    client_id: str


class KeyCache:
    """Confirmed keys by the SHA-256 of their secret. Belongs to one event loop.

    A key may be revoked between the database's answer and `add`: `add` takes the `state` read before the database was asked,
    and caches nothing where keys have been revoked since.
    """

    def __init__(self) -> None:
        self._keys: dict[str, CachedKey] = {}
        self._ids: frozenset[str] | None = None
        self.state = 0

    def find(self, secret: str) -> str | None:
        """The id of the client whose cached key has this secret, None where there is none."""
        key = self._keys.get(sha256(secret))
        return None if key is None else key.client_id

    def add(self, secret: str, key: CachedKey, state: int) -> None:
        """Cache a key that the database confirmed; `state` was read before the database was asked."""
        if state == self.state:
            self._keys[sha256(secret)] = key
            self._ids = None

    def ids(self) -> frozenset[str]:
        """The ids of the cached keys."""
        if self._ids is None:
            self._ids = frozenset(key.key_id for key in self._keys.values())
        return self._ids

    def keep_only(self, valid: Collection[str]) -> set[str]:
        """Keys have been revoked: drop all but the `valid` ids; the clients whose keys were dropped."""
        self.state += 1
        self._ids = None
        dropped = {digest: key.client_id for digest, key in self._keys.items() if key.key_id not in valid}
        for digest in dropped:
            del self._keys[digest]
        return set(dropped.values())
