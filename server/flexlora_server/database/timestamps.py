"""How instants look on the wire."""

from datetime import UTC, datetime


def rfc3339(instant: datetime) -> str:
    """An aware instant as RFC 3339 in UTC, to the millisecond."""
    return instant.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def rfc3339_or_none(instant: datetime | None) -> str | None:
    """The same for an instant that may not have come."""
    return None if instant is None else rfc3339(instant)
