"""A result that cannot be published: the place fails, not the round."""

import pytest
from sqlalchemy.exc import OperationalError

from flexlora_server.database.transactions import Tx
from flexlora_server.worker import worker
from flexlora_server.worker.leases import Lease
from flexlora_server.worker.publish import AggregationResult
from tests.support.kit import Served

TRIES = 6  # more than an aggregation may fail


def test_a_database_that_takes_no_result_fails_no_round(coordinator: Served) -> None:
    participant, task, data = coordinator.working()
    participant.upload(task, data)

    def refuse(tx: Tx, lease: Lease, result: AggregationResult) -> None:
        raise OperationalError("COMMIT", {}, Exception("database or disk is full"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "publish", refuse)
        for _ in range(TRIES):
            with pytest.raises(OperationalError):
                coordinator.worker.step()
            coordinator.clock.advance(coordinator.settings.lease_seconds + 1)
    summary = coordinator.round("run", 1)["summary"]
    assert summary["state"] == "AGGREGATING"
    assert coordinator.work() == 1
    assert coordinator.round("run", 1)["summary"]["state"] == "PUBLISHED"
