"""Enrollment, keys and the rank a participant declares."""

from typing import Annotated

from pydantic import Field

from flexlora_shared.messages.base import Count, Line, Message, Rank, RankPattern

ClientName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}$")]


class TokenRequest(Message):
    """Ask for a one-time enrollment token."""

    expires_in: Annotated[int, Field(ge=1, le=31_536_000)] = 86_400  # seconds
    note: Annotated[Line, Field(max_length=200)] = ""  # who it is for; the operator's own words


class Token(Message):
    """A one-time enrollment token; shown once."""

    token: str
    expires_at: str  # RFC 3339, UTC


class Enrollment(Message):
    """Redeem a token."""

    token: Annotated[Line, Field(max_length=200)]
    name: ClientName


class Credentials(Message):
    """A client's identity and its API key; the key is shown once."""

    client_id: str
    name: ClientName
    api_key: str


class ClientInfo(Message):
    """One enrolled client, as the operator sees it."""

    client_id: str
    name: ClientName
    enrolled_at: str
    revoked_at: str | None
    key_issued_at: str | None = None  # RFC 3339, UTC: of its newest API key


class ClientList(Message):
    """Every client ever enrolled."""

    clients: tuple[ClientInfo, ...]


class Hardware(Message):
    """What a participant trains on; shown to the operator, never interpreted."""

    device: Annotated[str, Field(max_length=100)] = ""
    memory_bytes: Annotated[int, Field(ge=0, lt=2**63)] = 0
    software: Annotated[str, Field(max_length=200)] = ""


class Declaration(Message):
    """The rank a participant affords in a run; may change between rounds.

    `rank_pattern` gives some modules another rank; keys name modules as PEFT's `rank_pattern` does, literally.
    """

    rank: Rank
    rank_pattern: RankPattern = {}
    examples: Count
    hardware: Hardware = Hardware()
