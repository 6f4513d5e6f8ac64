"""The tables of `coordinator`: a heading for each kind of line, printed row by row."""

from collections.abc import Iterable, Mapping
from typing import Any

Column = tuple[str, str, int]  # heading, key, decimal places; -1: text
COLUMNS: Mapping[str, tuple[Column, ...]] = {
    "transfers": (
        ("clients", "clients", 0),
        ("server", "server", -1),
        ("direction", "direction", -1),
        ("MiB/s", "mib_per_s", 0),
        ("raw MiB/s", "raw_mib_per_s", 0),
        ("x raw", "ratio_raw", 2),
        ("idle MiB", "idle_mib", 0),
        ("peak MiB", "peak_mib", 0),
        ("anonymous", "peak_anonymous_mib", 0),
        ("MiB/transfer", "mib_per_transfer", 2),
        ("p50 ms", "status_p50_ms", 1),
        ("p99 ms", "status_p99_ms", 1),
        ("server cores", "server_cpu", 2),
        ("client cores", "clients_cpu", 2),
        ("errors", "errors", 0),
        ("locked", "locked", 0),
    ),
    "state changes": (
        ("database", "database", -1),
        ("change", "change", -1),
        ("clients", "clients", 0),
        ("changes/s", "changes_per_s", 0),
        ("p50 ms", "status_p50_ms", 1),
        ("p99 ms", "status_p99_ms", 1),
        ("server cores", "server_cpu", 2),
        ("errors", "errors", 0),
        ("locked", "locked", 0),
    ),
    "peer": (
        ("peer", "peer", -1),
        ("MiB", "mib", 0),
        ("round trips", "round_trips", 0),
        ("seconds", "seconds", 1),
        ("empty message", "empty_seconds", 1),
        ("MiB/s", "mib_per_s", 1),
        ("beyond empty", "mib_per_s_beyond_empty", 1),
        ("idle MiB", "idle_mib", 0),
        ("peak MiB", "peak_mib", 0),
    ),
    "idle agents": (
        ("agents", "agents", 0),
        ("polls", "polls_answered", 0),
        ("unexpected", "unexpected_answers", 0),
        ("MiB", "rss_mib", 0),
        ("KiB/agent", "kib_per_agent", 1),
        ("server cores", "cpu_share_of_one_core", 3),
        ("p50 ms", "status_p50_ms", 1),
        ("p99 ms", "status_p99_ms", 1),
    ),
}


def show(lines: Iterable[Mapping[str, Any]]) -> None:
    """Print each line as soon as it comes, under the heading of its kind."""
    kind = ""
    for line in lines:
        columns = COLUMNS[line["kind"]]
        if line["kind"] != kind:
            kind = line["kind"]
            print("\n" + "  ".join(_place(heading, heading, places) for heading, _, places in columns))
        print("  ".join(_place(heading, _text(line.get(key), places), places) for heading, key, places in columns))
        if line.get("error"):
            print(f"  first error: {line['error']}")


def _text(value: Any, places: int) -> str:
    if value is None:
        return ""
    return str(value) if places < 0 else f"{value:,.{places}f}"


def _place(heading: str, text: str, places: int) -> str:
    return f"{text:<16}" if places < 0 else f"{text:>{max(8, len(heading))}}"
