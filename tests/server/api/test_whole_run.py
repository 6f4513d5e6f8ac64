"""One run from definition to completion, by hand over HTTP, on both databases."""

from tests.support.kit import Served, encode, tensors


def test_a_run_completes(coordinator: Served) -> None:
    run = coordinator.run(rounds=2, min_clients=2, min_updates=2, ranks=[1, 8])
    participants = [coordinator.enroll(name) for name in ("small", "large")]
    for participant, rank in zip(participants, (1, 8), strict=True):
        participant.declare("run", rank)
    for number in (1, 2):
        for seed, participant in enumerate(participants):
            task = participant.task("run")
            assert (task["round"], task["attempt"]) == (number, 1)
            assert participant.download(task)
            participant.upload(task, encode(tensors(run, task["rank"], seed=seed)), metrics={"train_loss": 1.5})
        assert coordinator.round("run", number)["summary"]["state"] == "AGGREGATING"
        assert coordinator.work() == 1
        summary = coordinator.round("run", number)["summary"]
        assert summary["state"] == "PUBLISHED"
        assert summary["train_metrics"] == {"train_loss": 1.5}
    status = coordinator.operator.expect(200, "GET", "/v1/runs/run")["status"]
    assert (status["state"], status["rounds_published"]) == ("COMPLETED", 2)
    assert participants[0].problem("run-over", "GET", "/v1/runs/run/task")["context"] == {"state": "COMPLETED"}
