"""What becomes of the other agents when one fails."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.lib.federation.federation import BenchmarkError, _end_together
from demo.cluster import Agent, agents


def agent(home: Path, code: str) -> Agent:
    """A process that stands in for an agent, with a log of its own."""
    home.mkdir()
    (home / "agent.log").write_text("one line\nthere is no base model at x\n")
    return Agent(home.name, home, subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL))


def test_one_failure_ends_all_and_is_named(tmp_path: Path) -> None:
    failing = agent(tmp_path / "failing", "import sys; sys.exit(3)")
    waiting = agent(tmp_path / "waiting", "import signal; signal.pause()")
    with agents([waiting, failing]) as started:
        failed = _end_together(started)
        assert waiting.process.wait() < 0  # by a signal
        with pytest.raises(BenchmarkError, match="failing ended with code 3: one line there is no base model at x"):
            failed.check()


def test_agents_that_end_well_leave_the_others_alone(tmp_path: Path) -> None:
    with agents([agent(tmp_path / name, "pass") for name in ("one", "two")]) as started:
        failed = _end_together(started)
        assert [one.process.wait() for one in started] == [0, 0]
        failed.check()
