"""The command line `flexlora-client`.

Nothing is imported here before `main` is called: the commands' libraries take a good part of a second, and Ctrl-C in it ends
the program without a traceback, too.
"""

import signal
import sys

INTERRUPTED = 130  # errors.Exit.INTERRUPTED


def main() -> None:
    """Entry point of `flexlora-client`."""
    try:
        # SIGTERM ends the program like Ctrl-C: finished work is already on disk
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        from flexlora_client.cli.commands import run_command

        run_command()
    except KeyboardInterrupt:
        ended = INTERRUPTED
    except SystemExit as ending:
        if ending.code != INTERRUPTED:
            raise
        ended = INTERRUPTED
    print("interrupted", file=sys.stderr)
    sys.exit(ended)
