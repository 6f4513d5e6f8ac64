"""Tells the coordinator that a round's work failed here, so that the round stops waiting for it.

Nothing of the participant's data is sent: sentences about data and from foreign code may quote it, so those stay here.
"""

from flexlora_client.coordinator_api.calls import Api
from flexlora_client.coordinator_api.retry import Backoff, RetryPolicy
from flexlora_client.errors import (
    AdapterError,
    ClientError,
    DataError,
    DeviceError,
    DivergedError,
    ModelError,
    OutOfMemory,
    PluginError,
)
from flexlora_shared.messages.tasks import Failure, FailureKind, Task

ATTEMPTS = Backoff(base=0.5, cap=2.0, attempts=3)  # somebody may wait for the agent's end
MAX_REASON_CHARS = 500  # the protocol's limit
QUOTABLE = (ModelError, AdapterError, DeviceError, DivergedError, PluginError)  # their sentences quote no data


def report_failure(api: Api, task: Task, error: Exception) -> ClientError | None:
    """Report that the task failed with `error`; why the report did not arrive, None where it did."""
    failure = Failure(attempt=task.attempt, kind=failure_kind(error), reason=_reason(error))
    try:
        Api(api.http, RetryPolicy(ATTEMPTS, api.retry.sleep)).report_failure(task.run, task.round, failure)
    except ClientError as unreported:
        return unreported
    return None


def failure_kind(error: Exception) -> FailureKind:
    """What the participant failed on."""
    match error:
        case DataError():
            return "data"
        case ModelError() | AdapterError():
            return "model"
        case OutOfMemory():
            return "memory"
        case DeviceError():
            return "device"
        case OSError():
            return "other"
        case _:
            return "training"


def _reason(error: Exception) -> str:
    if isinstance(error, QUOTABLE):
        printable = "".join(character if character.isprintable() else " " for character in str(error))
        return printable[:MAX_REASON_CHARS]
    return f"{type(error).__name__}; the participant's own output says more"
