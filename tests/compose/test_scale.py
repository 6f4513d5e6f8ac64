"""The profile `scale` on a real engine."""

import pytest

from tests.support.container_scripts import passes


@pytest.mark.slow
def test_a_run_completes_while_each_container_is_killed() -> None:
    """Two coordinators, two workers, PostgreSQL, object store, proxy: whichever dies, the run goes on and nothing is lost."""
    told = passes("test-scale")
    assert "COMPLETED: 100 rounds" in told
    assert "0 missing or damaged" in told
