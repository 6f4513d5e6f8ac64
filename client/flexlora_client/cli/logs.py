"""The command `logs`: what an agent wrote, also after it ended."""

import os
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, TextIO

import typer

from flexlora_client import credentials
from flexlora_client.agent.diary import LOG_FILE, OLD_LOGS
from flexlora_client.cli.options import HomeOption, RunArgument
from flexlora_client.errors import BadInput

LOOK_EVERY_S = 0.5


def logs(
    run: RunArgument,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="How many of the last lines.")] = 100,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new lines until Ctrl-C.")] = False,
    home: HomeOption = None,
) -> None:
    """What this machine's agent of a run wrote."""
    path = (home or credentials.default_home()) / "runs" / run / LOG_FILE
    if "/" in run or not path.is_file():
        raise BadInput(f"no agent of run {run} has written anything in {path.parent}; check the name and --home")
    files = [*(path.with_name(f"{LOG_FILE}.{number}") for number in range(OLD_LOGS, 0, -1)), path]
    begin = path.stat().st_size
    last = deque((line for file in files if file.exists() for line in _read(file)), maxlen=lines)
    print(*last, sep="\n", flush=True)
    if follow:
        for line in new_lines(path, begin):
            print(line, flush=True)


def new_lines(path: Path, begin: int, sleep: Callable[[float], None] = time.sleep) -> Generator[str, None, None]:
    """The lines that come behind byte `begin`, and those of the files that take its place when it is full; without end."""
    with ExitStack() as opened:
        file = opened.enter_context(path.open(encoding="utf-8", errors="replace"))
        file.seek(begin)
        rest = ""
        while True:
            *whole, rest = (rest + file.read()).split("\n")
            yield from whole
            if whole:
                continue
            if _renewed(path, file):
                opened.close()
                file = opened.enter_context(path.open(encoding="utf-8", errors="replace"))
            else:
                sleep(LOOK_EVERY_S)


def _renewed(path: Path, file: TextIO) -> bool:
    """Whether another file has the path by now."""
    try:
        return not os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:  # for a moment, while the next file takes its place
        return False


def _read(path: Path) -> list[str]:
    return path.read_text("utf-8", errors="replace").splitlines()
