"""Runs the scripts that drive a real container engine."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def passes(script: str) -> str:
    """What a script printed that passed; the test is skipped where the script says that it cannot run."""
    done = subprocess.run([f"scripts/{script}"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.stdout.startswith("skipped: "):
        pytest.skip(done.stdout.removeprefix("skipped: ").strip())
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
