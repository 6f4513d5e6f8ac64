"""The versions of program and protocol, which both sides send in headers, and their comparison."""

import importlib.metadata
from collections.abc import Mapping
from functools import cache

PROTOCOL = 1  # grows with a change that the other side would not understand; docs/protocol.md says which those are
PROTOCOL_HEADER = "FlexLoRA-Protocol"
VERSION_HEADER = "FlexLoRA-Version"
MAX_SHOWN_CHARS = 40  # of the other side's version headers


@cache
def version() -> str:
    """The version of the installed package."""
    try:
        return importlib.metadata.version("flexlora")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"  # its sources run without being installed


def version_line(program: str) -> str:
    """What `--version` prints."""
    return f"{program} {version()} (protocol {PROTOCOL})"


def version_headers() -> dict[str, str]:
    """The headers of every request and answer."""
    return {PROTOCOL_HEADER: str(PROTOCOL), VERSION_HEADER: version()}


def disagreement(headers: Mapping[str, str], they: str, we: str) -> str | None:
    """One sentence without a full stop where the other side speaks another protocol, and which side to update.

    headers: the other side's, whatever the case of names. One that names no protocol is taken to speak this one: it is
    older than the header, or a person's tool.
    """
    their_protocol = headers.get(PROTOCOL_HEADER)
    if their_protocol is None or their_protocol == str(PROTOCOL):
        return None
    older = "the older of the two"
    if their_protocol.isascii() and their_protocol.isdecimal():
        older = we if int(their_protocol[:MAX_SHOWN_CHARS]) > PROTOCOL else they
    theirs = (
        f"{they} (FlexLoRA {_shown(headers.get(VERSION_HEADER, 'unknown'))}) speaks protocol {_shown(their_protocol)}"
    )
    return f"{theirs}, {we} (FlexLoRA {version()}) speaks protocol {PROTOCOL}; update {older}"


def _shown(value: str) -> str:
    return "".join(character for character in value[:MAX_SHOWN_CHARS] if character.isprintable())
