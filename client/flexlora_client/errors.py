"""What can go wrong in the agent. Each error is one sentence for people and an exit code for the shell.

ClientError
├── Refused        the coordinator said no; carries its problem
├── Unreachable    nobody answered, or not a coordinator did
├── BadInput       data, model, credentials or local files that cannot be used
├── Corrupted      what arrived is not what the coordinator announced
└── RunEnded       the run was cancelled or failed
"""

from typing import ClassVar

from flexlora_client.exits import Exit
from flexlora_shared.problems import Code, Problem

# Time-outs, overload, a full disk, a defect that a restart may cure, a proxy whose coordinator is away.
TRANSIENT_STATUSES = frozenset({408, 429, 500, 502, 503, 504, 507})


class ClientError(Exception):
    """Base of all: `transient` says whether the same call may succeed later."""

    exit_code: ClassVar[Exit] = Exit.BAD_INPUT
    transient = False
    retry_after: float | None = None  # seconds the other side asked for


class Refused(ClientError):
    """The coordinator refused with a problem."""

    exit_code = Exit.REFUSED

    def __init__(self, problem: Problem, retry_after: float | None = None) -> None:
        super().__init__(f"{problem.detail} ({problem.code})")
        self.problem = problem
        self.retry_after = retry_after
        self.transient = problem.status in TRANSIENT_STATUSES or problem.code is Code.UPLOAD_BUSY

    @property
    def code(self) -> Code:
        """The problem's stable code."""
        return self.problem.code


class Unreachable(ClientError):
    """No coordinator answered: a transport fault, or an answer that is none of the protocol's (`status`)."""

    exit_code = Exit.UNREACHABLE

    def __init__(
        self, reason: str, *, transient: bool = True, retry_after: float | None = None, status: int | None = None
    ) -> None:
        super().__init__(reason)
        self.transient, self.status = transient, status
        self.retry_after = retry_after


class BadInput(ClientError):
    """Something given on this side cannot be used."""


class Corrupted(ClientError):
    """The bytes received are not the ones announced."""

    exit_code = Exit.UNREACHABLE


class RunEnded(ClientError):
    """The run ended without completing."""

    exit_code = Exit.RUN_ENDED
