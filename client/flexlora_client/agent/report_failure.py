"""Tells the coordinator that a round's work failed here, so that the round stops waiting for it.

Nothing of the participant's data is sent, nor where it keeps its files: most sentences may quote them, so those stay here.
"""

import re

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
    Refused,
)
from flexlora_shared.messages.tasks import Failure, FailureKind, Task

ATTEMPTS = Backoff(base=0.5, cap=2.0, attempts=3)  # somebody may wait for the agent's end
MAX_REASON_CHARS = 500  # the protocol's limit
QUOTABLE = (DeviceError, DivergedError)  # the sentences of others may quote data, or paths on the participant's machine
QUOTED = re.compile(r"(?<!\w)'[^']*'|\"[^\"]*\"")  # an apostrophe is none


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
    if isinstance(error, Refused):
        return f"the update was refused with {error.code}"
    if isinstance(error, QUOTABLE):
        without_quotes = QUOTED.sub("'…'", str(error))  # the base model's path, where it does not fit
        printable = "".join(character if character.isprintable() else " " for character in without_quotes)
        return printable[:MAX_REASON_CHARS]
    return f"{type(error).__name__}; the participant's own output says more"
