"""docker-compose.yml on a real engine."""

import pytest

from tests.support.container_scripts import passes


@pytest.mark.slow
def test_a_run_completes_and_outlives_down_and_up() -> None:
    """Build, up, a run by two agents of ranks 2 and 8, down, up: the same run, rounds, clients and adapters."""
    assert "the run is still there: COMPLETED, 2 rounds; passed" in passes("test-compose")
