"""What the coordinator is told of a round that failed on a participant's side."""

import pytest

from flexlora_client.agent.report_failure import report_failure
from flexlora_client.errors import (
    AdapterError,
    BadInput,
    DataError,
    DeviceError,
    DivergedError,
    ModelError,
    OutOfMemory,
    PluginError,
    Unreachable,
)
from flexlora_shared.messages.tasks import Failure
from tests.client.agent.test_refusals import told
from tests.support.connecting import Waits, connect
from tests.support.misbehaving import answer, hang_up, misbehaving

QUIET = "the participant's own output says more"


@pytest.mark.parametrize(
    ("error", "kind", "reason"),
    [
        (DataError("row 'my secret' is empty; fill it in."), "data", f"DataError; {QUIET}"),
        (BadInput("training failed in mine.py, line 3: KeyError: 'my secret'"), "training", f"BadInput; {QUIET}"),
        (OSError(28, "No space left on device"), "other", f"OSError; {QUIET}"),
        (ModelError("/home/eve/llama is no base model."), "model", f"ModelError; {QUIET}"),
        (AdapterError("/home/eve/slices/1 lacks a tensor."), "model", f"AdapterError; {QUIET}"),
        (PluginError("--metric returned 'my secret'."), "training", f"PluginError; {QUIET}"),
        (DeviceError("no such\tdevice\x00."), "device", "no such device ."),
        (OutOfMemory("it is too small."), "memory", "it is too small."),
        (OutOfMemory("the model '/home/eve/a' does not fit."), "memory", "the model '…' does not fit."),
        (DeviceError("there is no memory card reader."), "device", "there is no memory card reader."),
        (DeviceError("there is no device."), "device", "there is no device."),
        (DivergedError("the loss is nan " * 100), "training", ("the loss is nan " * 100)[:500]),
    ],
)
def test_what_it_failed_on_without_a_word_of_the_data(error: Exception, kind: str, reason: str) -> None:
    with misbehaving(answer(204)) as server, connect(server.url, Waits()) as api:
        assert report_failure(api, told(), error) is None
    assert server.calls == ["PUT /v1/runs/run/rounds/1/failure"]
    assert Failure.model_validate_json(server.asked[0].body) == Failure.model_validate(
        {"attempt": 1, "kind": kind, "reason": reason}
    )


def test_a_coordinator_that_is_away_holds_nobody_for_long() -> None:
    waits = Waits()
    with misbehaving(*[hang_up] * 3) as server, connect(server.url, waits, attempts=None) as api:
        assert isinstance(report_failure(api, told(), BadInput("x")), Unreachable)
    assert len(waits.slept) == 2
