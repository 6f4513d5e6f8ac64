"""`flexlora-sim compare`."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from flexlora_simulation.cli.commands import app
from flexlora_simulation.evidence.resumable import Done, Job
from flexlora_simulation.methods import comparison as module
from flexlora_simulation.methods.comparison_file import Comparison
from tests.support.simulated import tiny_experiment


def test_compare_prints_tables_and_says_where_the_runs_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def made(comparison: Comparison, folder: Path, job: Job) -> Done:
        return {"rounds": [2], "values": {"test": {"2": [0.25], "4": [0.5]}}, "uses": {"2": 2, "4": 4}}

    monkeypatch.setattr(module, "compared_run", made)
    experiment = json.loads(tiny_experiment(tmp_path).model_dump_json(exclude_defaults=True))
    content = {"name": "tiny", "experiment": experiment, "methods": ["flexlora"], "rates": [0.01], "seeds": [0]}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(content))
    result = CliRunner().invoke(app, ["compare", str(tmp_path / "tiny.yaml"), "--folder", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "| `flexlora` | 0.01 | 50.0 |  | 37.5 |  |  |" in result.output
    assert "1 seed, fewer than 5: **no claim**" in result.output
    assert (tmp_path / "out" / "tiny.json").exists()
