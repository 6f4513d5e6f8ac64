"""What a poll of the database returns to the waiting room."""

from flexlora_server.long_polling.poller import Poller, PollRequest
from tests.support.kit import Served


def test_a_run_that_began_and_ended_between_two_polls_ends_the_waits_in_it(coordinator: Served) -> None:
    """No poll had seen it before it was over; without a snapshot its agents would wait to the end of their polls."""
    poller = Poller(coordinator.store, 15.0)
    coordinator.run(min_clients=2)
    participant = coordinator.enroll()
    participant.declare("run", 2)
    coordinator.operator.expect(200, "POST", "/v1/runs/run/cancel")
    result = poller.poll(PollRequest({"run": (participant.client_id,)}, frozenset({"run"}), frozenset()))
    assert result.snapshots["run"].over
    assert poller.poll(PollRequest({"run": (participant.client_id,)}, frozenset({"run"}), frozenset())).snapshots == {}
