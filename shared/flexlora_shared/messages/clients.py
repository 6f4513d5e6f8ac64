"""Enrollment, keys and the rank a participant declares."""

from typing import Annotated

from pydantic import Field

from flexlora_shared.messages.base import Count, Line, Message, Rank, RankPattern, omitted_if_default
from flexlora_shared.messages.runs import Fingerprint

# A random name that each agent process gives itself and sends with every call: one key on two machines is two instances.
INSTANCE_HEADER = "FlexLoRA-Instance"
INSTANCE_PATTERN = r"^[A-Za-z0-9._-]{1,64}$"
ClientName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}$")]


class TokenRequest(Message):
    """Ask for a one-time enrollment token."""

    expires_in: Annotated[int, Field(ge=1, le=31_536_000, description="Seconds for which the token is valid")] = 86_400
    note: Annotated[Line, Field(max_length=200, description="Who the token is for, in the operator's words")] = ""


class Token(Message):
    """A one-time enrollment token; shown once."""

    token: Annotated[str, Field(description="The secret to hand to one participant; shown once")]
    expires_at: Annotated[str, Field(description="End of its validity, RFC 3339, UTC")]


class Enrollment(Message):
    """Redeem a token."""

    token: Annotated[Line, Field(max_length=200, description="The enrollment token that the operator handed out")]
    name: Annotated[ClientName, Field(description="Name of the participant, shown to the operator")]


class Credentials(Message):
    """A client's identity and its API key; the key is shown once."""

    client_id: Annotated[str, Field(description="Id of the client, for life")]
    name: Annotated[ClientName, Field(description="Name given at enrollment")]
    api_key: Annotated[str, Field(description="The client's API key; shown once")]


class ClientInfo(Message):
    """One enrolled client, as the operator sees it."""

    client_id: Annotated[str, Field(description="Id of the client")]
    name: Annotated[ClientName, Field(description="Name given at enrollment")]
    enrolled_at: Annotated[str, Field(description="RFC 3339, UTC")]
    revoked_at: Annotated[str | None, Field(description="When its key was revoked, RFC 3339, UTC; null: it was not")]
    key_issued_at: Annotated[str | None, Field(description="When its newest API key was issued, RFC 3339, UTC")] = None


class ClientList(Message):
    """Every client ever enrolled."""

    clients: Annotated[tuple[ClientInfo, ...], Field(description="The clients, in the order of their enrollment")]


class Hardware(Message):
    """What a participant trains on; shown to the operator, never interpreted."""

    device: Annotated[str, Field(max_length=100, description="Name of the device that trains")] = ""
    memory_bytes: Annotated[int, Field(ge=0, lt=2**63, description="Memory of the device; 0: unknown")] = 0
    software: Annotated[str, Field(max_length=200, description="Versions of the libraries that train")] = ""


class Declaration(Message):
    """The rank a participant affords in a run; may change between rounds.

    `rank_pattern` gives some modules another rank; keys name modules as PEFT's `rank_pattern` does, literally.
    """

    rank: Annotated[Rank, Field(description="LoRA rank that the participant affords; one of the run's")]
    rank_pattern: Annotated[
        RankPattern, Field(description="Ranks of modules that differ from `rank`, by name or name ending")
    ] = {}
    hold_rank: Annotated[
        Rank | None,
        Field(
            description="LoRA rank that the participant is served; it trains the first `rank` directions and holds the others "
            "frozen. One of the run's, at least `rank`; null: `rank`",
            exclude_if=omitted_if_default(None),
        ),
    ] = None
    examples: Annotated[Count, Field(description="Examples that the participant trains on")]
    hardware: Annotated[Hardware, Field(description="What the participant trains on")] = Hardware()
    fingerprint: Annotated[
        Fingerprint | None,
        Field(
            description="The participant's base model; must be the run's where that names one",
            exclude_if=omitted_if_default(None),
        ),
    ] = None


class Replaced(Message):
    """The agent that declared with the same key before, and may still run; it is refused from now on."""

    declared_at: Annotated[str, Field(description="When it declared, RFC 3339, UTC")]
    hardware: Annotated[Hardware, Field(description="What it trains on")]


class Declared(Declaration):
    """The answer to a declaration: the declaration that holds now, and whom it replaces."""

    replaced: Annotated[
        Replaced | None,
        Field(
            description="Another agent with this key that seemed to run until now; null: none did",
            exclude_if=omitted_if_default(None),
        ),
    ] = None
