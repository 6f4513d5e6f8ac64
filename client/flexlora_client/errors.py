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


def passes(status: int) -> bool:
    """Whether an HTTP status is a trouble that passes: time-outs, overload, a full disk, a proxy whose coordinator is away.

    Also a 500, which a restart may cure; not 501 and 505, which say that the other side will never do this.
    """
    return status in (408, 429) or (status >= 500 and status not in (501, 505))


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
        self.transient = passes(problem.status) or problem.code is Code.UPLOAD_BUSY

    @property
    def code(self) -> Code | str:
        """The problem's stable code; a plain string where it is newer than this program."""
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
