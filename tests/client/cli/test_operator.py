"""The operator's and the watcher's commands against a real coordinator."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from flexlora_client import credentials
from flexlora_client.cli import rendering
from flexlora_client.errors import Exit
from flexlora_shared.messages.runs import RunDetail
from flexlora_shared.messages.status import RoundDetail, RoundInput, RoundSummary
from tests.support.command import Result, call
from tests.support.kit import OPERATOR_KEY, Served, encode, spec, tensors
from tests.support.misbehaving import hang_up, message, misbehaving


@pytest.fixture
def operator(site: Served, tmp_path: Path) -> dict[str, str]:
    """The operator's environment."""
    return {
        "FLEXLORA_URL": site.url,
        "FLEXLORA_OPERATOR_KEY": OPERATOR_KEY,
        "FLEXLORA_HOME": str(tmp_path / "nobody"),
    }


def definition(folder: Path, **changes: object) -> Path:
    path = folder / "run.json"
    path.write_text(json.dumps(spec("trial", **changes)))
    return path


def ended(result: Result, code: Exit, *parts: str) -> None:
    assert result.code == code, result
    for part in parts:
        assert part in result.err
    assert result.out == ""


def test_a_run_from_definition_to_its_end(operator: dict[str, str], tmp_path: Path) -> None:
    created = call("runs", "create", definition(tmp_path), env=operator)
    assert (created.code, created.err) == (Exit.OK, "")
    assert "runs start trial" in created.out
    for action, state in [("start", "RUNNING"), ("pause", "PAUSED"), ("resume", "RUNNING"), ("cancel", "CANCELLED")]:
        assert call("runs", action, "trial", env=operator).out == f"run trial is {state}\n"
    ended(call("runs", "start", "trial", env=operator), Exit.REFUSED, "error: ", "(run-state)")


def test_a_run_starts_from_another_one(site: Served, operator: dict[str, str], tmp_path: Path) -> None:
    site.run("first")
    created = call("runs", "create", definition(tmp_path), "--start-from", "first", env=operator)
    assert created.code == Exit.OK
    start = site.spec("trial").start_from
    assert start is not None
    assert (start.run, start.round) == ("first", 0)
    ended(
        call("runs", "create", definition(tmp_path), "--start-from", "first:9", env=operator), Exit.REFUSED, "Round 9"
    )
    ended(
        call("runs", "create", definition(tmp_path), "--start-from", "first:x", env=operator),
        Exit.BAD_INPUT,
        "'x' is no",
    )


def test_a_run_of_ranks_that_nothing_serves_is_created_with_a_warning(
    site: Served, operator: dict[str, str], tmp_path: Path
) -> None:
    module = {"name": "up_proj", "out_features": 1024, "in_features": 1024}
    created = call("runs", "create", definition(tmp_path, ranks=[8, 1024], modules=[module]), env=operator)
    assert created.code == Exit.OK
    [warning] = site.operator.expect(200, "GET", "/v1/runs/trial")["warnings"]
    assert warning.startswith("rank 1024 is above 512, the largest that a serving program loads")
    assert created.err == f"warning: {warning}\n"
    site.run("usual")
    assert "warnings" not in site.operator.expect(200, "GET", "/v1/runs/usual"), "which earlier releases do not know"


def test_runs_are_listed_and_shown(site: Served, operator: dict[str, str]) -> None:
    site.run("one")
    listed = call("runs", "list", env=operator).out
    assert "one" in listed
    assert "RUNNING" in listed
    assert call("status", env=operator).out == listed
    assert [run["name"] for run in call("status", "--json", env=operator).json["runs"]] == ["one"]
    shown = call("status", "one", env=operator).out
    assert "rounds published  0 of 2" in shown
    assert call("status", "one", "--json", env=operator).json["state"] == "RUNNING"
    detail = RunDetail.model_validate_json(call("runs", "show", "one", "--json", env=operator).out)
    assert detail.spec.rounds == 2
    assert '"out_features": 20' in call("runs", "show", "one", env=operator).out


def test_rounds_show_losses_energy_and_participants(site: Served, operator: dict[str, str]) -> None:
    run, participant = site.run("one", rounds=1), site.enroll("St. Marys")
    participant.declare("one", 4)
    participant.upload(participant.task("one"), encode(tensors(run, 4)), metrics={"train_loss": 1.25})
    while participant.call("GET", "/v1/runs/one/task", params={"wait": 30}).status_code == 204:
        pass  # until round 1 is published and the run is over
    told = {"rank": 4, "examples": 3, "metrics": {"loss": 2.5}}
    assert participant.call("POST", "/v1/runs/one/rounds/0/evaluations", json=told).status_code == 204
    table = call("rounds", "one", env=operator).out
    assert "4: 2.500" in table
    assert "1.2500" in table
    round_view = call("rounds", "one", "1", env=operator).out
    assert "participant St. Marys" in round_view
    assert "rank 4, declared 20" in round_view
    assert "singular values of layers.0.q_proj" in round_view
    assert call("rounds", "one", "1", "--json", env=operator).json["summary"]["number"] == 1
    assert [r["number"] for r in call("rounds", "one", "--json", env=operator).json["rounds"]] == [1, 0]


def test_tokens_and_clients(operator: dict[str, str], tmp_path: Path) -> None:
    token = call("tokens", "create", "--note", "site a", "--expires-in", "60", env=operator).out.strip()
    home = {**operator, "FLEXLORA_HOME": str(tmp_path / "a")}
    assert call("enroll", operator["FLEXLORA_URL"], "--token", token, "--name", "site a", env=home).code == Exit.OK
    listed = call("clients", "list", "--json", env=operator).json["clients"]
    assert [(c["name"], c["revoked_at"]) for c in listed] == [("site a", None)]
    assert listed[0]["key_issued_at"] == listed[0]["enrolled_at"]
    assert "site a" in call("clients", "list", env=operator).out
    client = listed[0]["client_id"]
    assert call("clients", "revoke", client, env=operator).out == f"client {client} is revoked\n"
    assert call("clients", "list", "--json", env=operator).json["clients"][0]["revoked_at"]
    as_participant = {"FLEXLORA_HOME": str(tmp_path / "a")}
    ended(call("status", env=as_participant), Exit.REFUSED, "(unauthenticated)")
    ended(call("clients", "revoke", "0" * 16, env=operator), Exit.REFUSED, "(client-not-found)")
    assert call("tokens", "create", "--json", env=operator).json["expires_at"]


def test_the_key_may_lie_in_a_file(site: Served, tmp_path: Path) -> None:
    key = tmp_path / "operator.key"
    key.write_text(OPERATOR_KEY + "\n")
    assert call("runs", "list", "--url", site.url, "--key-file", key).code == Exit.OK
    missing = call("runs", "list", "--url", site.url, "--key-file", tmp_path / "none")
    ended(missing, Exit.BAD_INPUT, "cannot read the key")


def test_what_is_missing_is_named(site: Served, tmp_path: Path) -> None:
    home = {"FLEXLORA_HOME": str(tmp_path)}
    no_key = call("tokens", "create", "--url", site.url, env=home)
    ended(no_key, Exit.BAD_INPUT, "FLEXLORA_OPERATOR_KEY", "--key-file")
    ended(call("status", env=home), Exit.BAD_INPUT, "enroll first")
    no_url = call("tokens", "create", env=home | {"FLEXLORA_OPERATOR_KEY": OPERATOR_KEY})
    ended(no_url, Exit.BAD_INPUT, "--url", "FLEXLORA_URL")
    wrong = call("tokens", "create", "--url", site.url, env=home | {"FLEXLORA_OPERATOR_KEY": "wrong"})
    ended(wrong, Exit.REFUSED, "(unauthenticated)")


def test_definitions_that_define_no_run(operator: dict[str, str], tmp_path: Path) -> None:
    ended(call("runs", "create", tmp_path / "none.json", env=operator), Exit.BAD_INPUT, "cannot read", "none.json")
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    ended(call("runs", "create", broken, env=operator), Exit.BAD_INPUT, "defines no run", "Invalid JSON")
    wrong = definition(tmp_path, rounds=0, typo=1)
    ended(call("runs", "create", wrong, env=operator), Exit.BAD_INPUT, "rounds: ", "typo: ")
    call("runs", "create", definition(tmp_path), env=operator)
    ended(call("runs", "create", definition(tmp_path), env=operator), Exit.REFUSED, "(run-exists)")


def test_runs_that_are_not_there(operator: dict[str, str]) -> None:
    for name in ("none", "a/b", "../x", "UPPER", "ä"):
        ended(call("status", name, env=operator), Exit.REFUSED, "error: ")
        ended(call("rounds", name, env=operator), Exit.REFUSED, "error: ")


def test_no_coordinator_at_the_address(operator: dict[str, str]) -> None:
    nobody = operator | {"FLEXLORA_URL": "http://127.0.0.1:9"}
    ended(call("status", env=nobody), Exit.UNREACHABLE, "error: no answer from http://127.0.0.1:9", "trying again")
    ended(call("status", env=operator | {"FLEXLORA_URL": "nonsense"}), Exit.BAD_INPUT, "no address")


@pytest.mark.parametrize(
    "arguments",
    [["unknown"], ["runs"], ["runs", "create"], ["rounds", "one", "x"], ["tokens", "create", "--expires-in", "0"]],
)
def test_wrong_command_lines(arguments: list[str]) -> None:
    assert call(*arguments).code == Exit.USAGE


def test_what_gives_out_a_secret_is_asked_for_once(tmp_path: Path) -> None:
    with misbehaving(hang_up, hang_up) as server:
        operator = {"FLEXLORA_URL": server.url, "FLEXLORA_OPERATOR_KEY": OPERATOR_KEY}
        ended(call("tokens", "create", env=operator), Exit.UNREACHABLE, "ask for another one")
        home = {"FLEXLORA_HOME": str(tmp_path / "home")}
        ended(call("enroll", server.url, "--token", "t", env=home), Exit.UNREACHABLE, "enroll again")
        assert server.calls == ["POST /v1/enrolment-tokens", "POST /v1/clients"]


def test_a_key_goes_to_no_other_coordinator(tmp_path: Path) -> None:
    with misbehaving() as enrolled_at, misbehaving() as other:
        identity = credentials.Identity(url=enrolled_at.url, client_id="c", name="a", api_key="k")
        credentials.save(tmp_path, identity)
        home = {"FLEXLORA_HOME": str(tmp_path)}
        operator = home | {"FLEXLORA_OPERATOR_KEY": OPERATOR_KEY}
        for command in (["status"], ["clients", "list"]):
            ended(call(*command, env=operator), Exit.BAD_INPUT, "which coordinator?")
        ended(call("status", "--url", other.url, env=home), Exit.BAD_INPUT, f"enrolled at {enrolled_at.url}")
        assert enrolled_at.calls == other.calls == []


def test_a_failed_round_is_retried_without_the_uploads_named() -> None:
    told = {
        "run": "one", "number": 3, "attempt": 1, "state": "AGGREGATING", "opened_at": "", "deadline": None,
        "published_at": None, "waiting_for": "Waiting for a worker.", "failures": 0, "reason": None,
        "participants": {"present": 2, "assigned": 2, "uploading": 0, "accepted": 2}, "by_rank": [], "bytes_received": 0,
        "train_metrics": {}, "evaluations": [], "energy_kept": [], "aggregation_seconds": None,
    }  # fmt: skip
    summary = RoundSummary.model_validate_json(json.dumps(told))
    with misbehaving(message(summary), message(summary)) as server:
        operator = {"FLEXLORA_URL": server.url, "FLEXLORA_OPERATOR_KEY": OPERATOR_KEY}
        said = call("retry", "one", "3", "--exclude", "u1", "--exclude", "u2", env=operator)
        assert (said.code, said.out) == (Exit.OK, "round 3 of run one is AGGREGATING: Waiting for a worker.\n")
        assert call("retry", "one", "3", "--json", env=operator).json["number"] == 3
        assert server.calls == ["POST /v1/runs/one/rounds/3/retry"] * 2
        assert [json.loads(asked.body) for asked in server.asked] == [{"exclude": ["u1", "u2"]}, {"exclude": []}]


def test_a_round_that_has_not_failed_is_not_retried(site: Served, operator: dict[str, str]) -> None:
    site.run("one")
    ended(call("retry", "one", "1", env=operator), Exit.REFUSED, "(round-state)")


class Terminal(io.StringIO):
    """A standard input at which somebody types."""

    def isatty(self) -> bool:
        return True


def test_a_run_is_rolled_back_by_who_confirms_it(
    site: Served, operator: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    site.run("one")
    ended(call("rollback", "one", "--to", "0", env=operator), Exit.USAGE, "say --yes")
    monkeypatch.setattr("sys.stdin", Terminal("n\n"))
    refused = call("rollback", "one", "--to", "0", env=operator)
    ended(refused, Exit.USAGE, "publish the adapter of round 0 again? [y/N] error: not confirmed; nothing was changed")
    assert site.operator.expect(200, "GET", "/v1/runs/one")["status"]["rounds_published"] == 0
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    said = call("rollback", "one", "--to", "0", env=operator)
    assert said.out == "run one is rolled back: round 1 publishes the adapter of round 0; RUNNING\n"
    assert call("rollback", "one", "--to", "1", "--yes", "--json", env=operator).json["state"] == "COMPLETED"
    ended(call("rollback", "one", "--to", "9", "--yes", env=operator), Exit.REFUSED, "(adapter-not-published)")


def test_what_a_definition_leaves_out_the_coordinator_fills_in(
    site: Served, operator: dict[str, str], tmp_path: Path
) -> None:
    given = spec("trial")
    del given["weighting"]
    (tmp_path / "run.json").write_text(json.dumps(given))
    assert call("runs", "create", tmp_path / "run.json", env=operator).code == Exit.OK
    stored = site.spec("trial")
    assert (stored.weighting, stored.robust) == ("capped", ())  # `robust: []` means none
    del given["robust"]
    (tmp_path / "run.json").write_text(json.dumps(given | {"name": "other"}))
    assert call("runs", "create", tmp_path / "run.json", env=operator).code == Exit.OK
    assert [rule.kind for rule in site.spec("other").robust] == ["norm-clip"]


def test_failures_and_inputs_are_shown(site: Served) -> None:
    site.run("one")
    detail = RoundDetail.model_validate_json(json.dumps(site.round("one", 0)))
    summary = detail.summary.model_copy(update={"failures": 2, "reason": "upload u1 cannot be read"})
    entry = RoundInput(upload_id="u1", client_id="c1", round=3, staleness=1, excluded=True)
    console = Console(width=200)
    with console.capture() as captured:
        console.print(rendering.round_detail(detail.model_copy(update={"summary": summary, "inputs": (entry,)})))
    assert "2 times, the last: upload u1 cannot be read" in captured.get()
    assert "of c1 for round 3, late by 1, excluded" in captured.get()
