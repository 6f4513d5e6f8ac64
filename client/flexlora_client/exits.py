"""The exit codes of `flexlora-client`, all in one place; `docs/participating.md` shows the same table."""

from enum import IntEnum


class Exit(IntEnum):
    """What the shell sees when the command ends."""

    OK = 0  # done; of `run`: the run completed
    USAGE = 2  # the command line is wrong
    REFUSED = 3  # the coordinator refused; the sentence on stderr is its reason
    UNREACHABLE = 4  # no coordinator answered at that address, or one of another protocol
    BAD_INPUT = 5  # data, model, credentials or files that cannot be used, or training failed on them
    RUN_ENDED = 6  # the run was cancelled or failed
    INTERRUPTED = 130  # Ctrl-C or SIGTERM; what was finished is kept for the next start
