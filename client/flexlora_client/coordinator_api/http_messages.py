"""Common parts of HTTP exchanges: time-outs, responses, and descriptions of transport errors."""

import ssl
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


def describe_error(error: Exception) -> str:
    """The reason of a transport error, without a full stop."""
    reason = str(error).rstrip(".") or type(error).__name__
    certificate = isinstance(error.__cause__, ssl.SSLError) or "CERTIFICATE_VERIFY_FAILED" in reason
    advice = "; check the certificate, or name its authority with --ca-file" if certificate else ""
    return f"{reason}{advice}"


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
