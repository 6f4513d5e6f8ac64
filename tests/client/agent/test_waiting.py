"""What an agent without work says, on a clock of the test's own."""

from flexlora_client.agent.waiting import ASK_EVERY_S, Waiting
from tests.client.agent.test_loop import Listening
from tests.client.agent.test_refusals import idle
from tests.support.connecting import Waits, connect
from tests.support.misbehaving import hang_up, misbehaving


def test_the_coordinators_sentence_is_told_at_once_and_again_when_it_changes() -> None:
    now, reporter = [0.0], Listening("run")
    with (
        misbehaving(idle("For A."), idle("For A."), idle("For B."), hang_up) as server,
        connect(server.url, Waits()) as api,
    ):
        waiting = Waiting(api, "run", reporter, lambda: now[0])
        for _ in range(6):
            waiting.go_on()
            now[0] += ASK_EVERY_S / 2
        assert server.plan == [hang_up]
        waiting.end()
        waiting.go_on()
    told = [event["waiting_for"] for event in reporter.events]
    assert told == ["For A.", "For B.", "for work"]
