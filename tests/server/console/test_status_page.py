"""The status page and the metrics for Prometheus."""

import base64

from tests.support.kit import OPERATOR_KEY, Api, Served, encode, tensors


def _password(key: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"anybody:{key}".encode()).decode()}


def test_the_page_shows_runs_and_rounds(coordinator: Served) -> None:
    run = coordinator.run(
        rounds=1,
        model={"id": "<script>alert(1)</script>"},
        strategy="flexlora-residual",
        strategy_options={"leak": 0.1, "energy": 0.95},
    )
    participant = coordinator.enroll()
    participant.declare("run", 4)
    task = participant.task("run")
    participant.upload(task, encode(tensors(run, 4)), metrics={"train_loss": 1.25})
    coordinator.work()
    evaluation = {"rank": 4, "examples": 5, "metrics": {"loss": 2.125}}
    participant.expect(204, "POST", "/v1/runs/run/rounds/1/evaluations", json=evaluation)
    page = Api(coordinator.http).call("GET", "/", headers=_password(OPERATOR_KEY)).text
    assert "COMPLETED" in page
    assert "flexlora-residual (leak 0.1, energy 0.95)" in page
    assert "1 at rank 4" in page
    assert "1.250" in page
    assert "4: 2.125" in page
    assert "8: 100.0 %" in page
    assert "&lt;script&gt;" in page
    assert "<script>" not in page


def test_the_page_shows_what_participants_failed_on(coordinator: Served) -> None:
    participant, task, _ = coordinator.working(rank=4, min_clients=1)
    failure = {"attempt": task["attempt"], "kind": "data", "reason": "row 3 has no <answer>"}
    participant.expect(204, "PUT", "/v1/runs/run/rounds/1/failure", json=failure)
    page = Api(coordinator.http).call("GET", "/", headers=_password(OPERATOR_KEY)).text
    assert "failed: data: row 3 has no &lt;answer&gt;" in page
    assert "0 of at least 1 are present, 1 participant failed" in page


def test_the_page_asks_for_the_operators_key(coordinator: Served) -> None:
    participant = coordinator.enroll()
    stranger = Api(coordinator.http)
    response = stranger.call("GET", "/")
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"].startswith("Basic ")
    assert stranger.call("GET", "/", headers=_password("wrong")).status_code == 401
    assert participant.problem("forbidden", "GET", "/")
    assert participant.problem("forbidden", "GET", "/metrics")


def test_metrics_count_by_state(coordinator: Served) -> None:
    coordinator.run()
    coordinator.enroll()
    lines = coordinator.operator.call("GET", "/metrics").text.splitlines()
    assert 'flexlora_runs{state="RUNNING"} 1.0' in lines
    assert 'flexlora_round_attempts{state="PUBLISHED"} 1.0' in lines
    assert "flexlora_clients 1.0" in lines
