"""Says in one sentence for people what a round waits for."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from flexlora_server.state_machine import MAX_FAILURES, RoundView, Wait, gather, judge
from flexlora_shared.messages.runs import RunSpec


def waiting_for(
    spec: RunSpec, round_: RoundView, present: Mapping[str, str], carried: Sequence[str], now: datetime
) -> str:
    """What the round waits for, and until when, in one sentence."""
    match round_.state:
        case "OPEN":
            decision = gather(spec, round_, present, now, carried)
            return _until(decision) if isinstance(decision, Wait) else "About to begin."
        case "COLLECTING":
            judged = judge(spec, round_, now)
            return _until(judged) if isinstance(judged, Wait) else "About to aggregate."
        case "AGGREGATING":
            return _aggregation(round_, now)
        case "FAILED":
            return f"Waiting for the operator to retry the aggregation or cancel the run: {round_.reason}"
        case _:
            return "Nothing."


def _until(wait: Wait) -> str:
    return wait.why if wait.until is None else f"{wait.why} Until {_time(wait.until)}."


def _aggregation(round_: RoundView, now: datetime) -> str:
    attempt = f"attempt {round_.failures + 1} of {MAX_FAILURES}"
    why = f" What ended the last one: {round_.reason}" if round_.reason else ""
    ahead = round_.lease_until is not None and round_.lease_until > now
    if round_.leased and ahead:
        return (
            f"A worker aggregates the updates ({attempt}); it holds the round until {_time(round_.lease_until)}.{why}"
        )
    if ahead:
        return f"Waiting to aggregate the updates again ({attempt}), until {_time(round_.lease_until)}.{why}"
    return f"Waiting for a worker to aggregate the updates ({attempt}).{why}"


def _time(at: datetime | None) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"
