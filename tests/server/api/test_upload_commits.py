"""The end of an upload: a commit, a cancellation, or a closed round."""

from concurrent.futures import ThreadPoolExecutor

from tests.support.kit import Served, encode, part, tensors
from tests.support.sending import put


def test_cancel(coordinator: Served) -> None:
    participant, task, data = coordinator.working()
    upload = participant.announce(task, data)["id"]
    participant.send(upload, data)
    participant.expect(204, "DELETE", f"/v1/uploads/{upload}")
    assert list((coordinator.settings.data_dir / "partial").iterdir()) == []
    participant.problem("upload-not-found", "DELETE", f"/v1/uploads/{upload}")
    participant.problem("upload-not-found", "PUT", f"/v1/uploads/{upload}/commit")
    assert participant.upload(task, data)["upload_id"] != upload


def test_an_accepted_update_is_final(coordinator: Served) -> None:
    participant, task, data = coordinator.working(min_updates=1)
    other = coordinator.enroll("other")
    receipt = participant.upload(task, data)
    upload = receipt["upload_id"]
    assert put(participant, upload, b"", len(data))[0] == 409
    participant.problem("already-accepted", "DELETE", f"/v1/uploads/{upload}")
    again = participant.announce(task, data)
    assert (again["id"], again["state"]) == (upload, "ACCEPTED")
    announced = {"rank": 8, "alpha": 16.0, "examples": 10, "size": len(data), "sha256": "0" * 64}
    participant.problem("already-accepted", "POST", "/v1/runs/run/rounds/1/uploads", json=announced)
    coordinator.work()
    assert participant.commit(upload) == receipt  # whatever became of the round since
    other.problem("upload-not-found", "PUT", f"/v1/uploads/{upload}/commit")


def test_late_uploads_are_gone(coordinator: Served) -> None:
    """Late is late on each path, once the round aggregates without it."""
    run = coordinator.run(min_clients=2)
    participant, other = coordinator.enroll(), coordinator.enroll()
    for member in (participant, other):
        member.declare("run", 8)
    task, data = participant.task("run"), encode(tensors(run, 8))
    upload = participant.announce(task, data)["id"]
    put(participant, upload, data[:1000], 0)
    other.upload(other.task("run"), data)
    coordinator.clock.advance(100)
    announced = {"rank": 8, "alpha": 16.0, "examples": 10, "size": len(data), "sha256": "0" * 64}
    participant.problem("round-closed", "POST", "/v1/runs/run/rounds/1/uploads", json=announced)
    while not coordinator.work():  # the deadline is seen by the coordinator's own clock
        pass
    participant.problem("round-closed", "PUT", f"/v1/uploads/{upload}/commit")
    participant.problem("round-closed", "DELETE", f"/v1/uploads/{upload}")
    rest = data[1000:]
    participant.problem("round-closed", "PATCH", f"/v1/uploads/{upload}", headers=part(rest, 1000), content=rest)
    coordinator.check_storage()
    assert not (coordinator.settings.data_dir / "partial" / upload).exists()


def test_cancelling_the_run_ends_its_uploads(coordinator: Served) -> None:
    participant, task, data = coordinator.working()
    upload = participant.announce(task, data)["id"]
    participant.send(upload, data)
    coordinator.operator.expect(200, "POST", "/v1/runs/run/cancel")
    participant.problem("round-closed", "PUT", f"/v1/uploads/{upload}/commit")
    coordinator.check_storage()
    assert list((coordinator.settings.data_dir / "partial").iterdir()) == []


def test_a_revoked_client_cannot_go_on(coordinator: Served) -> None:
    participant, task, data = coordinator.working()
    upload = participant.announce(task, data)["id"]
    participant.send(upload, data)
    coordinator.operator.expect(204, "DELETE", f"/v1/clients/{participant.client_id}")
    participant.problem("unauthenticated", "PUT", f"/v1/uploads/{upload}/commit")
    participant.problem("unauthenticated", "POST", "/v1/clients/me/keys")
    assert coordinator.round("run", 1)["summary"]["participants"]["accepted"] == 0


def test_racing_commits_count_once(coordinator: Served) -> None:
    participant, task, data = coordinator.working()
    upload = participant.announce(task, data)["id"]
    participant.send(upload, data)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: participant.call("PUT", f"/v1/uploads/{upload}/commit"), range(16)))
    codes = {answer.status_code for answer in answers}
    assert codes <= {200, 409}
    assert {answer.json()["code"] for answer in answers if answer.status_code == 409} <= {"upload-busy"}
    assert len({answer.text for answer in answers if answer.status_code == 200}) == 1
    assert coordinator.round("run", 1)["summary"]["participants"]["accepted"] == 1


def test_a_commit_and_a_cancellation_race(coordinator: Served) -> None:
    """Either the update counts and stays, or it is gone: never both."""
    participant, task, data = coordinator.working(rounds=50)
    participant.declare("run", 8, 12)
    run = "/v1/runs/run/rounds/1"
    for examples in range(1, 13):
        upload = participant.announce(task, data, examples=examples)["id"]
        participant.send(upload, data)
        with ThreadPoolExecutor(2) as pool:
            committing = pool.submit(participant.call, "PUT", f"/v1/uploads/{upload}/commit")
            cancelling = pool.submit(participant.call, "DELETE", f"/v1/uploads/{upload}")
        commit, cancel = committing.result().status_code, cancelling.result().status_code
        assert (commit == 200) != (cancel == 204), (commit, cancel)
        accepted = coordinator.operator.expect(200, "GET", run)["summary"]["participants"]["accepted"]
        assert accepted == (commit == 200)
        if accepted:
            return


def test_two_participants_may_send_the_same_bytes(coordinator: Served) -> None:
    run = coordinator.run(min_clients=2, min_updates=2)
    both = [coordinator.enroll(name) for name in ("one", "two")]
    for participant in both:
        participant.declare("run", 8)
    data = encode(tensors(run, 8))
    receipts = [participant.upload(participant.task("run"), data) for participant in both]
    assert receipts[0]["upload_id"] != receipts[1]["upload_id"]
    assert coordinator.work() == 1
    assert coordinator.round("run", 1)["summary"]["state"] == "PUBLISHED"
    coordinator.check_storage()
