"""The errors of the client. Each has a message of one sentence and an exit code.

ClientError
├── Refused        the coordinator said no; carries its problem
├── Unreachable    nobody answered, or not a coordinator did
├── BadInput       data, model, credentials or local files that cannot be used
├── UsageError     options of the command line that do not fit the protocol's messages
├── Corrupted      what arrived is not what the coordinator announced
├── NotAgreed      the coordinator asks for what this participant did not agree to
└── RunEnded       the run was cancelled or failed
TrainingError      local training, for authors of training loops too
├── DataError      the participant's data cannot be used
├── ModelError     the base model or its tokenizer cannot be used for this run
├── AdapterError   the slice served does not fit the run or the base model
├── DeviceError    the device asked for is not there, or cannot compute as asked
│   └── OutOfMemory  its memory is too small, also for the most sparing settings
├── PluginError    a custom training loop cannot be loaded
└── DivergedError  training produced numbers that are not finite
"""

from enum import IntEnum
from typing import ClassVar

from pydantic import ValidationError

from flexlora_shared.problems import Code, Problem


def is_transient_status(status: int) -> bool:
    """Whether a call with this HTTP status may succeed later: time-outs, overload, a full disk, an unreachable coordinator.

    Also a 500, which a restart may cure; not 501 and 505, which are final.
    """
    return status in (408, 429) or (status >= 500 and status not in (501, 505))


class Exit(IntEnum):
    """What the shell sees when the command ends; `docs/exit-codes.md` says how to resolve each."""

    OK = 0  # done; of `run`: the run completed
    USAGE = 2  # the command line is wrong
    REFUSED = 3  # the coordinator refused; the sentence on stderr is its reason
    UNREACHABLE = 4  # no coordinator answered at that address
    BAD_INPUT = 5  # data, model, credentials or files that cannot be used, or training failed on them
    RUN_ENDED = 6  # the run was cancelled or failed
    NOT_AGREED = 7  # the coordinator asks for what this participant did not agree to
    INTERRUPTED = 130  # Ctrl-C or SIGTERM; what was finished is kept for the next start


class ClientError(Exception):
    """Base of all: `transient` says whether the same call may succeed later."""

    exit_code: ClassVar[Exit] = Exit.BAD_INPUT
    transient = False
    retry_after: float | None = None  # seconds


def describe_validation_error(error: ValidationError) -> str:
    """The first three faults of a message, each after the path of its field."""
    faults = error.errors(include_url=False)
    parts = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in faults[:3]]
    more = f" (and {len(faults) - 3} more)" if len(faults) > 3 else ""
    return "; ".join(parts) + more


def exit_code(error: Exception) -> Exit:
    """The code with which a command ends that `error` ended."""
    return error.exit_code if isinstance(error, ClientError) else Exit.BAD_INPUT


def sentence_of(error: Exception) -> str:
    """The sentence that people are shown."""
    if isinstance(error, OSError):
        return f"{f'{error.filename}: ' if error.filename else ''}{error.strerror or error}"
    return str(error)


class Refused(ClientError):
    """The coordinator refused with a problem."""

    exit_code = Exit.REFUSED

    def __init__(self, problem: Problem, retry_after: float | None = None) -> None:
        super().__init__(f"{problem.detail} ({problem.code})")
        self.problem = problem
        self.retry_after = retry_after
        self.transient = is_transient_status(problem.status) or problem.code is Code.UPLOAD_BUSY

    @property
    def code(self) -> Code | str:
        """The problem's stable code; a plain string where it is newer than this program."""
        return self.problem.code


class Unreachable(ClientError):
    """No coordinator answered: a transport error, or a response (`status`) that is none of the protocol's."""

    exit_code = Exit.UNREACHABLE

    def __init__(
        self, reason: str, *, transient: bool = True, retry_after: float | None = None, status: int | None = None
    ) -> None:
        super().__init__(reason)
        self.transient, self.status = transient, status
        self.retry_after = retry_after


class BadInput(ClientError):
    """Something given on this side cannot be used."""


class UsageError(ClientError):
    """An option's value is not one that the protocol's messages allow."""

    exit_code = Exit.USAGE


class Corrupted(ClientError):
    """The bytes received are not the ones announced."""

    exit_code = Exit.UNREACHABLE


class NotAgreed(ClientError):
    """The coordinator asks for what this participant did not agree to."""

    exit_code = Exit.NOT_AGREED


class RunEnded(ClientError):
    """The run ended without completing."""

    exit_code = Exit.RUN_ENDED


class TrainingError(Exception):
    """Base of what can go wrong in local training; each message is a sentence that says what to do."""


class DataError(TrainingError):
    """The participant's data cannot be used."""


class ModelError(TrainingError):
    """The base model or its tokenizer cannot be used for this run."""


class AdapterError(TrainingError):
    """The slice served does not fit the run or the base model."""


class DeviceError(TrainingError):
    """The device asked for is not there, or cannot compute as asked."""


class OutOfMemory(DeviceError):
    """The memory is too small, also for the most sparing settings; a lower rank or a smaller base model may fit."""


class PluginError(TrainingError):
    """A custom training loop cannot be loaded."""


class DivergedError(TrainingError):
    """Training produced numbers that are not finite."""


class Stopped(TrainingError):
    """Training ended early because it was asked to; a checkpoint lies where the job said."""
