"""Running `flexlora-client`, or another program: in this process, or as a process of its own that can be killed."""

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from flexlora_client.cli import main


@dataclass(frozen=True)
class Result:
    """How a command ended and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as one JSON value."""
        return json.loads(self.out)


def call(*arguments: str | Path, env: Mapping[str, str] | None = None, program: Callable[[], None] = main) -> Result:
    """Run the command here; its exit code and output, and a proof that nothing else came out."""
    out, err = io.StringIO(), io.StringIO()
    with (
        patch.object(sys, "argv", ["flexlora-client", *map(str, arguments)]),
        patch.dict(os.environ, env or {}),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            program()
        except SystemExit as ended:
            code = ended.code
    assert isinstance(code, int), code
    assert "Traceback" not in err.getvalue()
    return Result(code, out.getvalue(), err.getvalue())


def start(*arguments: str | Path, env: Mapping[str, str]) -> "subprocess.Popen[str]":
    """Run the command as a process of its own."""
    program = [sys.executable, "-c", "from flexlora_client.cli import main; main()", *map(str, arguments)]
    path = os.pathsep.join(filter(None, sys.path))
    return subprocess.Popen(
        program,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
