"""`doctor`: what stands between this machine and taking part in a run, as a table or as JSON."""

import inspect
import json
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flexlora_client.errors import Exit

if TYPE_CHECKING:  # they load PyTorch
    from flexlora_client.agent.assemble import RunOptions
    from flexlora_client.agent.checks.findings import Finding

STYLES = {"passed": "green", "warning": "yellow", "failed": "bold red", "skipped": "dim"}


def as_doctor(run: Callable[..., None]) -> Callable[..., None]:
    """The command `doctor`: the options of `run`, which are checked instead of used."""

    @wraps(run)
    def doctor(**arguments: Any) -> None:
        run(**arguments, check=True)

    signature = inspect.signature(run)
    shown = [parameter for name, parameter in signature.parameters.items() if name != "check"]
    doctor.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]  # typer reads it
    doctor.__doc__ = "Check everything that `run` with the same options needs, and time a few steps; declares nothing."
    return doctor


def diagnose(home: Path, ca_file: Path | None, options: "RunOptions", *, as_json: bool) -> None:
    """Run the checks and show what they found; ends with the exit code of the first that failed."""
    from flexlora_client.agent.checks.findings import first_failure
    from flexlora_client.agent.diagnose import diagnose_all  # takes seconds to import

    console = Console(stderr=True, highlight=False)
    with console.status("looking at what is there") as status:
        findings = diagnose_all(home, ca_file, options, lambda name: status.update(f"checking: {name}"))
    code = first_failure(findings)
    if as_json:
        checks = [{"check": f.check, "state": f.state, "detail": f.detail} for f in findings]
        print(json.dumps({"run": options.run, "exit_code": int(code), "checks": checks}))
    else:
        _console().print(table(findings))
    if code is not Exit.OK:
        raise typer.Exit(code)


def table(findings: Sequence["Finding"]) -> Table:
    """The findings for people."""
    shown = Table(box=None, pad_edge=False)
    for name in ("check", "", "found"):
        shown.add_column(name, overflow="fold")
    for finding in findings:
        shown.add_row(finding.check, Text(finding.state, STYLES[finding.state]), finding.detail)
    return shown


def _console() -> Console:
    console = Console(markup=False, highlight=False, emoji=False)
    if not sys.stdout.isatty():
        console.width = 200
    return console
