"""Round views that the tests of the state machine begin from."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from flexlora_server.state_machine import RoundView
from flexlora_shared.messages.runs import RunSpec, RunState
from flexlora_shared.messages.status import RoundState
from tests.support.kit import spec

NOW = datetime(2027, 1, 1, tzinfo=UTC)
TICK = timedelta(microseconds=1)
RUN_STATES: tuple[RunState, ...] = ("DRAFT", "RUNNING", "PAUSED", "COMPLETED", "CANCELLED", "FAILED")
ROUND_STATES: tuple[RoundState, ...] = ("OPEN", "COLLECTING", "AGGREGATING", "PUBLISHED", "ABANDONED", "FAILED")


def defined(**changes: Any) -> RunSpec:
    return RunSpec.model_validate(spec(**{"min_clients": 2, "gather_timeout": 10.0, "round_timeout": 60.0} | changes))


OPENED = RoundView("RUNNING", number=1, attempt=1, state="OPEN", opened_at=NOW, deadline=None)
COLLECTING = replace(OPENED, state="COLLECTING", deadline=NOW + timedelta(seconds=60), assigned=3)


def seconds(number: float) -> datetime:
    return NOW + timedelta(seconds=number)
