"""What the lobby's looks at the database find."""

from flexlora_server.long_polling.poller import Lookout, Task
from tests.support.kit import Served


def test_a_run_that_began_and_ended_between_two_looks_is_news_to_whoever_waits_in_it(coordinator: Served) -> None:
    """Nobody had looked before it was over; without news its agents would wait to the end of their polls."""
    lookout = Lookout(coordinator.store, 15.0)
    coordinator.run(min_clients=2)
    participant = coordinator.enroll()
    participant.declare("run", 2)
    coordinator.operator.expect(200, "POST", "/v1/runs/run/cancel")
    found = lookout.look(Task({"run": (participant.client_id,)}, frozenset({"run"}), frozenset()))
    assert found.views["run"].over
    assert lookout.look(Task({"run": (participant.client_id,)}, frozenset({"run"}), frozenset())).views == {}
