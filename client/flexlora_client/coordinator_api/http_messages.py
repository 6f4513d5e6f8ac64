"""Common parts of HTTP exchanges: time-outs, responses, and descriptions of transport errors."""

import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

CONNECT_TIMEOUT_S = 10.0
IO_TIMEOUT_S = 60.0  # without one byte read or written; a whole transfer has no limit

Body = bytes | Iterator[bytes]


@dataclass(frozen=True)
class Answer:
    """A response that is no refusal; header names are lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Stream:
    """A response whose body is read in chunks."""

    status: int
    headers: Mapping[str, str]
    chunks: Iterator[bytes]


@dataclass(frozen=True)
class Probe:
    """What one answer shows of the way to the coordinator."""

    version: str | None  # of its program
    certificate_ends: float | None  # Unix time at which its certificate expires; None without TLS


def describe_error(error: Exception) -> str:
    """The reason of a transport error, without a full stop."""
    reason = str(error).rstrip(".") or type(error).__name__
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, socket.gaierror):
            return f"{reason}; check how the host's name is written, and this machine's network"
        if isinstance(cause, ConnectionRefusedError):
            return f"{reason}; check the address and its port, or ask the operator whether it runs"
        cause = cause.__cause__ or cause.__context__
    return reason


def describe_proxy_error(error: Exception) -> str:
    """Why the proxy of this machine (HTTPS_PROXY, HTTP_PROXY, ALL_PROXY) made no connection, without a full stop."""
    return (
        f"the proxy that this machine's settings name answered {describe_error(error)}; give what it asks for in "
        "HTTPS_PROXY (http://user:password@proxy:port), or name the coordinator's host in NO_PROXY"
    )


def parse_retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that `Retry-After` asks to wait, in either of its forms (RFC 9110, 10.2.3)."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        if value.strip().isdecimal():
            return float(value)
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


def parse_clock_ahead(headers: Mapping[str, str]) -> float | None:
    """Seconds that the sender's clock, by its `Date`, is ahead of this machine's; None where it does not say."""
    try:
        return (parsedate_to_datetime(headers["date"]) - datetime.now(UTC)).total_seconds()
    except (KeyError, ValueError, TypeError):
        return None
