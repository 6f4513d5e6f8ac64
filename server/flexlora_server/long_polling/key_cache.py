"""Keys that were good at the last look at the database: enough to go on waiting, not to be given anything."""

from collections.abc import Collection
from dataclasses import dataclass

from flexlora_server.database.queries.clients import sha256


@dataclass(frozen=True)
class Known:
    """A key that the database has confirmed: its id and whose it is."""

    key_id: str
    client_id: str


class Keyring:
    """Known keys by the digest of their secret. Belongs to one event loop.

    A key may end between the database's word and its entry here: `add` is told the `state` from before the question, and
    enters nothing where keys have ended since.
    """

    def __init__(self) -> None:
        self._known: dict[str, Known] = {}
        self._ids: frozenset[str] | None = None
        self.state = 0

    def find(self, secret: str) -> str | None:
        """The client whose known key this is."""
        known = self._known.get(sha256(secret))
        return None if known is None else known.client_id

    def add(self, secret: str, known: Known, state: int) -> None:
        """Enter a key that the database confirmed; `state` is from before it was asked."""
        if state == self.state:
            self._known[sha256(secret)] = known
            self._ids = None

    def ids(self) -> frozenset[str]:
        """The ids of the known keys."""
        if self._ids is None:
            self._ids = frozenset(known.key_id for known in self._known.values())
        return self._ids

    def drop(self, good: Collection[str]) -> set[str]:
        """Keys have ended: forget all but the `good` ones; the clients whose keys were forgotten."""
        self.state += 1
        self._ids = None
        gone = {digest: known.client_id for digest, known in self._known.items() if known.key_id not in good}
        for digest in gone:
            del self._known[digest]
        return set(gone.values())
