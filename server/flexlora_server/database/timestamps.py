"""Formats instants for messages."""

from datetime import UTC, datetime


def rfc3339(instant: datetime) -> str:
    """An aware instant as RFC 3339 in UTC, to the millisecond."""
    return instant.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def rfc3339_or_none(instant: datetime | None) -> str | None:
    """As `rfc3339`, None for None."""
    return None if instant is None else rfc3339(instant)
