"""docker-compose.yml on a real engine, by the script that people run too."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_run_completes_and_outlives_down_and_up() -> None:
    """Build, up, a run by two agents of ranks 2 and 8, down, up: the same run, rounds, clients and adapters."""
    done = subprocess.run(["scripts/test-compose"], cwd=ROOT, capture_output=True, text=True, check=False)

    if done.stdout.startswith("skipped: "):
        pytest.skip(done.stdout.removeprefix("skipped: ").strip())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the run is still there: COMPLETED, 2 rounds; passed" in done.stdout
