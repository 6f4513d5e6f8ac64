"""What all programs have in common on the command line: help, and completion in a shell."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from flexlora_client.cli.commands import app as client
from flexlora_server.cli import app as server
from flexlora_simulation.cli.commands import app as simulation

PROGRAMS = Path(sys.executable).parent
COMPLETE = """
eval "$({program} --show-completion)"
COMP_WORDS=({program} {word}) COMP_CWORD=1
_{function}_completion {program}
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def paths(command: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words before the options of each command, the program's own among them."""
    yield above
    for name, below in getattr(command, "commands", {}).items():
        yield from paths(below, (*above, name))


@pytest.mark.parametrize(
    ("app", "known"), [(server, ("worker",)), (client, ("runs", "create")), (simulation, ("show",))]
)
def test_h_helps_with_every_command(
    app: typer.Typer, known: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    command = typer.main.get_command(app)
    found = list(paths(command))
    assert known in found
    for words in found:
        assert command.main([*words, "-h"], prog_name="program", standalone_mode=False) == 0
        assert f"Usage: {' '.join(['program', *words])}" in capsys.readouterr().out


@pytest.mark.parametrize("program", ["flexlora-server", "flexlora-client", "flexlora-sim"])
def test_help_needs_no_pytorch(program: str) -> None:
    """Which would take seconds to load."""
    command = [sys.executable, "-X", "importtime", str(PROGRAMS / program), "--help"]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert re.search(r"\| +typer$", loaded, re.MULTILINE)
    assert re.search(r"\| +torch$", loaded, re.MULTILINE) is None


@pytest.mark.parametrize(
    ("program", "word", "offered"),
    [
        pytest.param("flexlora-server", "mi", ["migrate"], marks=pytest.mark.slow),
        ("flexlora-client", "ru", ["run", "runs"]),
        pytest.param("flexlora-sim", "s", ["show"], marks=pytest.mark.slow),
    ],
)
def test_bash_completes_commands(program: str, word: str, offered: list[str]) -> None:
    """By what `--show-completion` prints in a bash, which it recognises as the shell that started it."""
    script = COMPLETE.format(program=program, word=word, function=program.replace("-", "_"))
    environment = {**os.environ, "PATH": f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == offered
