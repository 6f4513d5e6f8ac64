"""A round's metrics over REST, on the page and in the terminal: who sees what."""

import base64
import io
import json

from rich.console import Console
from sqlalchemy import select

from flexlora_client.cli.rendering import round_detail
from flexlora_server.database.schema import RoundModules
from flexlora_shared.messages.status import RoundDetail
from tests.support.databases import ON_SQLITE
from tests.support.kit import OPERATOR_KEY, Api, Participant, Served, encode, tensors

pytestmark = ON_SQLITE  # figures of an aggregation, kept as JSON

KRUM = {"kind": "multi-krum", "byzantine_share": 0.15}


def filtered_round(coordinator: Served) -> list[Participant]:
    """Six participants of which the last sends a hundredfold update, in a run that drops such."""
    run = coordinator.run(min_clients=6, min_updates=6, rounds=1, robust=[KRUM], ranks=[4, 8], norm_bound=1e6)
    members = [coordinator.enroll(f"clinic {index}") for index in range(6)]
    for member in members:
        member.declare("run", 4)
    for index, member in enumerate(members):
        made = tensors(run, 4, seed=index)
        factor = 100.0 if index == 5 else 1.0
        member.upload(member.task("run"), encode({k: t if "lora_A" in k else factor * t for k, t in made.items()}))
    assert coordinator.work() == 1
    return members


def test_the_operator_sees_who_was_dropped_and_why(coordinator: Served) -> None:
    members = filtered_round(coordinator)
    detail = coordinator.round("run", 1)
    updates = {participant["name"]: participant["update"] for participant in detail["participants"]}
    assert updates["clinic 5"]["weight"] == 0
    assert "dropped by multi-krum" in updates["clinic 5"]["notes"][0]
    assert all(updates[f"clinic {index}"]["weight"] == 0.2 for index in range(5))
    assert all(updates[f"clinic {index}"]["notes"] == [] for index in range(5))
    assert updates["clinic 5"]["change_norm"] > 50 * updates["clinic 0"]["change_norm"]
    assert len(detail["cosines"]) == 6
    assert {participant["client_id"] for participant in detail["participants"]} == {
        member.client_id for member in members
    }
    assert {participant["declared_at"] for participant in detail["participants"]} == {
        detail["summary"]["opened_at"]
    }  # the clock stands still


def test_everybody_sees_the_rounds_figures_and_nobody_elses(coordinator: Served) -> None:
    member = filtered_round(coordinator)[0]
    detail = member.expect(200, "GET", "/v1/runs/run/rounds/1")
    assert detail["participants"] is None
    assert detail["cosines"] is None
    summary = detail["summary"]
    assert summary["aggregation"]["filtered"] == 1
    assert summary["aggregation"]["certificate"] == 1.0
    assert summary["aggregation"]["change_norm"] > 0
    least, median, most = (summary["aggregation"]["pairwise_cosine"][name] for name in ("least", "median", "most"))
    assert -1 <= least <= median <= most <= 1
    assert abs(summary["energy_above_smallest_rank"] - (1 - summary["energy_kept"][0]["share"])) < 1e-12
    for module in detail["modules"]:
        assert module["route"] in {"svd", "qr", "eigh", "gram", "subspace"}
        assert module["fell_back"] == []
        assert module["bytes_read"] > 0
        assert module["pairwise_cosine"] is not None


def test_the_page_and_the_terminal_show_them(coordinator: Served) -> None:
    filtered_round(coordinator)
    password = base64.b64encode(f"anybody:{OPERATOR_KEY}".encode()).decode()
    page = Api(coordinator.http).call("GET", "/", headers={"Authorization": f"Basic {password}"}).text
    summary = coordinator.round("run", 1)["summary"]
    assert f"{summary['aggregation']['pairwise_cosine']['median']:.2f}" in page
    assert f"{100 * summary['energy_above_smallest_rank']:.1f} %" in page
    detail = RoundDetail.model_validate_json(json.dumps(coordinator.round("run", 1)))
    console = Console(file=io.StringIO(), width=200)
    console.print(round_detail(detail))
    shown = console.file.getvalue()  # type: ignore[attr-defined]  # a StringIO
    assert "dropped by multi-krum" in shown
    assert "energy above the smallest rank" in shown
    assert "the smallest possible" in shown


def test_a_round_published_before_there_were_such_figures_still_shows(coordinator: Served) -> None:
    """What an earlier version wrote lacks them."""
    filtered_round(coordinator)
    with coordinator.store.transaction() as tx:
        for row in tx.session.scalars(select(RoundModules)):
            old = ("name", "singular_values", "total_energy", "effective_rank", "energy_kept")
            row.modules = [{key: module[key] for key in old} for module in row.modules]
            row.updates = row.summary = None
    detail = coordinator.round("run", 1)
    assert detail["summary"]["aggregation"] is None
    assert detail["modules"][0]["route"] == ""
    assert detail["participants"][0]["update"] is None


def late_and_own(coordinator: Served) -> tuple[Participant, Participant]:
    """Round 2 counts two updates of one participant, its own and a late one, and a late one of another that is not in it."""
    run = coordinator.run(min_clients=2, rounds=2, late_updates="next-round", ranks=[4, 8])
    quick, slow, gone = (coordinator.enroll(name) for name in ("quick", "slow", "gone"))
    coordinator.operator.expect(200, "POST", "/v1/runs/run/pause")  # until all three are there
    for member in (quick, slow, gone):
        member.declare("run", 4)
    coordinator.operator.expect(200, "POST", "/v1/runs/run/resume")
    tasks = [member.task("run") for member in (quick, slow, gone)]
    sent = [encode(tensors(run, 4, seed=seed)) for seed in range(5)]
    uploads = [
        member.announce(task, data)["id"] for member, task, data in zip((slow, gone), tasks[1:], sent[1:3], strict=True)
    ]
    quick.upload(tasks[0], sent[0])
    # paused until both are there: a sign of life from before may be written after the clock's jump
    coordinator.operator.expect(200, "POST", "/v1/runs/run/pause")
    coordinator.clock.advance(100)
    while coordinator.round("run", 1)["summary"]["state"] != "PUBLISHED":
        coordinator.work()
    for member, upload, data in zip((slow, gone), uploads, sent[1:3], strict=True):
        member.send(upload, data)
        assert member.commit(upload)["counts_in"] == 2
    for member in (quick, slow):
        member.declare("run", 4)
    coordinator.operator.expect(200, "POST", "/v1/runs/run/resume")
    coordinator.operator.expect(204, "DELETE", f"/v1/clients/{gone.client_id}")
    for member, data in zip((quick, slow), sent[3:], strict=True):
        member.upload(member.task("run"), data, examples=3)
    coordinator.work()
    return slow, gone


def test_a_late_and_an_own_update_are_both_shown(coordinator: Served) -> None:
    slow, gone = late_and_own(coordinator)
    detail = coordinator.round("run", 2)
    told = {one["name"]: one for one in detail["participants"]}
    own, late = told["slow"]["update"], told["slow"]["late"]
    assert [one["client_id"] for one in (own, *late)] == [slow.client_id] * 2
    assert own["weight"] == 3 / (6 + 20 / 2**0.5)
    assert late[0]["weight"] == (10 / 2**0.5) / (6 + 20 / 2**0.5)
    assert "late" not in told["quick"]  # not sent: earlier releases do not know it
    of_participants = [one["update"]["weight"] for one in told.values() if one["update"]]
    of_participants += [one["weight"] for participant in told.values() for one in participant.get("late", ())]
    of_inputs = [one["update"]["weight"] for one in detail["inputs"]]
    assert len(of_participants) == len(of_inputs) == 4
    assert abs(sum(of_participants) - 1) < 1e-12
    assert abs(sum(of_inputs) - 1) < 1e-12
    assert all(one["update"]["client_id"] == one["client_id"] for one in detail["inputs"])
    assert [(one["client_id"] == gone.client_id) for one in detail["participants"]].count(True) == 1
    assert detail["summary"]["aggregation"]["late"] == 2
    order = sorted(detail["inputs"], key=lambda one: (one["client_id"], one["round"]))
    for row, one in zip(detail["cosines"], order, strict=True):
        others = [cosine for cosine in row if cosine < 0.999999]
        assert abs(sum(others) / 3 - one["update"]["cosine"]) < 1e-9


def test_the_page_and_the_terminal_show_what_came_late(coordinator: Served) -> None:
    late_and_own(coordinator)
    password = base64.b64encode(f"anybody:{OPERATOR_KEY}".encode()).decode()
    page = Api(coordinator.http).call("GET", "/", headers={"Authorization": f"Basic {password}"}).text
    assert "and 2 late" in page
    console = Console(file=io.StringIO(), width=300)
    console.print(round_detail(RoundDetail.model_validate_json(json.dumps(coordinator.round("run", 2)))))
    shown = console.file.getvalue()  # type: ignore[attr-defined]  # a StringIO
    assert shown.count("; of an earlier round; weight ") == 2
    assert "2 updates of earlier rounds" in shown
    assert "late by 1; weight " in shown
