"""Ctrl-C and SIGTERM while the program still imports its libraries: a word and the exit code, no traceback."""

import os
import signal
import subprocess
import sys

import pytest

from flexlora_client.errors import Exit

# raises the signal when the library is about to be imported
PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {library!r}:
            signal.raise_signal(signal.{sent})
sys.meta_path.insert(0, Finder())
from flexlora_client.cli import main
main()
"""


@pytest.mark.parametrize(("library", "sent"), [("typer", "SIGINT"), ("torch", "SIGTERM")])
def test_an_interrupt_while_importing(library: str, sent: str) -> None:
    arguments = ["run", "a-run", "--rank", "4", "--data", "data.jsonl"]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(library=library, sent=sent), *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (Exit.INTERRUPTED, "", "interrupted\n")


def test_the_exit_code_is_the_documented_one() -> None:
    from flexlora_client import cli

    assert cli.INTERRUPTED == Exit.INTERRUPTED
    assert signal.SIGINT + 128 == Exit.INTERRUPTED
