"""The documents of events and exit codes say what the program does."""

import ast
import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

import flexlora_client
from flexlora_client.errors import Exit
from flexlora_shared.problems import Code

ROOT = Path(__file__).parents[2]
AGENT = Path(flexlora_client.__file__).parent / "agent"


def reported() -> dict[str, set[str]]:
    """Every event that the agent's source reports, with its fields, from the calls of `step` and `event`."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in AGENT.rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(call, ast.Call) and call.args and isinstance(call.args[0], ast.Constant)):
                continue
            name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            if name in ("step", "event"):
                fields = {keyword.arg for keyword in call.keywords}
                assert None not in fields, f"{path}, line {call.lineno}: name each field, so that this test sees it"
                found[str(call.args[0].value)] |= {str(field) for field in fields}
    return found


def documented() -> dict[str, set[str]]:
    """The events of docs/events.md, with their fields."""
    text = (ROOT / "docs" / "events.md").read_text()
    rows = re.findall(r"^\| `([a-z-]+)` \|([^|]*)\|[^|]+\|$", text.split("| event |", 1)[1], re.MULTILINE)
    return {kind: set(re.findall(r"`([a-z_0-9]+)`", fields)) for kind, fields in rows}


def test_every_event_and_field_is_documented() -> None:
    assert reported() == documented()


def test_every_exit_code_is_documented_with_what_to_do() -> None:
    text = (ROOT / "docs" / "exit-codes.md").read_text()
    rows = re.findall(r"^\| (\d+) \| ([A-Z_]+) \|", text, re.MULTILINE)
    assert {name: int(code) for code, name in rows} == {code.name: int(code) for code in Exit}
    headings = re.findall(r"^## (\d+): ", text, re.MULTILINE)
    assert [int(code) for code in headings] == [int(code) for code in Exit if code is not Exit.OK]


def test_the_codes_of_refusals_exist() -> None:
    text = (ROOT / "docs" / "exit-codes.md").read_text().split("## 3: ")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `([a-z-]+)` \|", text, re.MULTILINE)) <= {str(code) for code in Code}


def test_the_service_restarts_where_that_may_help() -> None:
    unit = (ROOT / "systemd" / "flexlora-agent@.service").read_text()
    final = {Exit.USAGE, Exit.REFUSED, Exit.BAD_INPUT, Exit.RUN_ENDED}
    [named] = re.findall(r"^RestartPreventExitStatus=(.*)$", unit, re.MULTILINE)
    assert {int(code) for code in named.split()} == final
    assert f"SuccessExitStatus={int(Exit.INTERRUPTED)}\n" in unit
    assert Exit.UNREACHABLE not in final


def test_systemd_takes_the_service(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd is not installed")
    unit = (ROOT / "systemd" / "flexlora-agent@.service").read_text()
    path = tmp_path / "flexlora-agent@my-run.service"
    path.write_text(unit.replace("/opt/flexlora/bin/flexlora-client", shutil.which("true") or "/bin/true"))
    done = subprocess.run([analyze, "verify", str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
