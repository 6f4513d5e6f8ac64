"""The command line `flexlora-sim`.

Nothing is imported here before `main` is called: the commands' libraries take a good part of a second, and Ctrl-C in it ends
the program without a traceback, too.
"""

import signal
import sys

INTERRUPTED = 130  # flexlora_client.errors.Exit.INTERRUPTED


def main() -> None:
    """Entry point of `flexlora-sim`."""
    try:
        # SIGTERM ends the program like Ctrl-C: what was finished is already on disk
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        from flexlora_simulation.cli.commands import run_command

        run_command()
    except KeyboardInterrupt:
        ended = INTERRUPTED
    except SystemExit as ending:
        if ending.code != INTERRUPTED:
            raise
        ended = INTERRUPTED
    print("interrupted; nothing that was finished is lost, and the same command goes on", file=sys.stderr)
    sys.exit(ended)
