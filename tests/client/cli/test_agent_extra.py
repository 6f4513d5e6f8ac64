"""The operator's commands need none of what training needs; the others say what to install."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from flexlora_client.cli.agent_extra import LIBRARIES
from flexlora_client.errors import Exit
from tests.support.kit import OPERATOR_KEY, Served

IN_TURN = """
import json, sys
from flexlora_client.cli import main
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["flexlora-client", *arguments]
    try:
        main()
    except SystemExit as ended:
        assert ended.code == 0, (arguments, ended.code)
print(json.dumps(sorted(sys.modules)))
"""
WITHOUT = f"import sys; sys.modules |= dict.fromkeys({LIBRARIES}); from flexlora_client.cli import main; main()"


def test_operating_loads_nothing_of_training(site: Served, tmp_path: Path) -> None:
    spec = site.run("one")
    (tmp_path / "two.json").write_text(spec.model_copy(update={"name": "two"}).model_dump_json())
    commands = [
        ["--help"], ["run", "--help"], ["describe", "--help"], ["runs", "list"], ["runs", "create", str(tmp_path / "two.json")],
        ["runs", "show", "two"], ["runs", "start", "two"], ["runs", "cancel", "two"], ["status"],
        ["rounds", "one"], ["rounds", "one", "0"],
        ["tokens", "create"], ["clients", "list"],
        ["export", "one", "--rank", "4", "--exact", "--output", str(tmp_path / "exported")],
    ]  # fmt: skip
    env = {
        "PYTHONPATH": ":".join(filter(None, sys.path)),
        "FLEXLORA_URL": site.url,
        "FLEXLORA_OPERATOR_KEY": OPERATOR_KEY,
    }
    done = subprocess.run(
        [sys.executable, "-c", IN_TURN, json.dumps(commands)], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert "flexlora_client.cli.operator" in loaded
    assert (
        loaded & {"torch", "transformers", "peft", "pyarrow", "numpy", "safetensors", "fastapi", "sqlalchemy"} == set()
    )


@pytest.mark.parametrize("command", [["run", "one", "--rank", "4", "--data", "x.jsonl"], ["describe", "demo/model"]])
def test_a_missing_extra_is_named(command: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT, *command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (Exit.BAD_INPUT, "")
    lacks = (
        "filelock, jinja2, peft, PIL, psutil, pyarrow, safetensors, torch, transformers, which this installation lacks"
    )
    assert done.stderr == f"error: this command needs {lacks}: pip install 'flexlora[agent]'\n"
