"""An update whose round was closed while it trained or travelled is sent all the same where the run counts late ones."""

import json
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from flexlora_client.agent.local_trainer import LocalTrainer
from flexlora_client.agent.loop import Agent
from flexlora_client.agent.work_folder import WorkFolder
from flexlora_client.errors import Refused
from flexlora_client.training.data.examples import Plain
from flexlora_client.training.models.load_model import Models
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.messages.uploads import Receipt, UploadStatus
from flexlora_shared.problems import Code
from tests.client.agent.test_loop import Listening
from tests.client.agent.test_refusals import DECLARATION, DECLARE, TASK, over, told
from tests.support.connecting import Waits, connect
from tests.support.misbehaving import Asked, Misbehaving, Planned, answer, message, misbehaving, problem
from tests.support.served_slices import RUN, config, whole
from tests.support.trainers import Nudge

LATE = RUN.model_copy(update={"late_updates": "next-round"})
CREATE = "POST /v1/runs/run/rounds/1/uploads"
PATCH, COMMIT = "PATCH /v1/uploads/u1", "PUT /v1/uploads/u1/commit"


def task(number: int = 1, spec: RunSpec = LATE) -> Planned:
    return message(told().model_copy(update={"round": number, "spec": spec}))


def created(handler: BaseHTTPRequestHandler, asked: Asked) -> None:
    """The upload that was announced, open."""
    body = json.loads(asked.body)
    fields = {"id": "u1", "run": "run", "round": 1, "state": "OPEN", "offset": 0}
    status = UploadStatus.model_validate(fields | {"size": body["size"], "sha256": body["sha256"]})
    message(status, 201)(handler, asked)


def arrived(handler: BaseHTTPRequestHandler, asked: Asked) -> None:
    """All of the part."""
    end = int(asked.headers["upload-offset"]) + len(asked.body)
    answer(204, Upload_Offset=str(end))(handler, asked)


def counted(number: int, counts_in: int) -> list[Planned]:
    """An upload to a round and its receipt."""
    at = "2030-01-01T00:00:00Z"
    receipt = Receipt(upload_id="u1", run="run", round=number, counts_in=counts_in, sha256="0" * 64, accepted_at=at)
    return [created, arrived, message(receipt)]


def take_part(server: Misbehaving, home: Path, spec: RunSpec) -> tuple[Listening, Nudge]:
    """An agent until it ends; what it said, and what it trained."""
    reporter, trainer = Listening("run"), Nudge()
    learner = LocalTrainer(trainer, Models(), (Plain("one"),), (), 0, "cpu", None)
    with connect(server.url, Waits()) as api:
        Agent(api, spec, WorkFolder(home, "run"), learner, DECLARATION, reporter).run()
    assert server.plan == []
    return reporter, trainer


def stopped_before_it_counts(home: Path, spec: RunSpec) -> None:
    """An agent that trained for round 1, found no place for its update, and ended."""
    plan = [
        message(DECLARATION),
        task(spec=spec),
        whole(),
        config(),
        problem(Code.NOT_ASSIGNED),
        problem(Code.FORBIDDEN),
    ]
    with misbehaving(*plan) as server, pytest.raises(Refused):
        take_part(server, home, spec)


def test_a_late_update_that_counts_later_is_no_loss(tmp_path: Path) -> None:
    with misbehaving(message(DECLARATION), task(), whole(), config(), *counted(1, 3), *over()) as server:
        reporter, _ = take_part(server, tmp_path, LATE)
    [late] = [event for event in reporter.events if event["event"] == "late"]
    assert (late["round"], late["counts_in"]) == (1, 3)
    assert "late: counts in round 3" in late["sentence"]
    assert {"lost", "accepted"}.isdisjoint(reporter.kinds())
    assert WorkFolder(tmp_path, "run").state.trained is None


def test_a_kept_update_is_sent_before_the_next_round_is_trained(tmp_path: Path) -> None:
    first = [message(DECLARATION), task(), whole(), config(), problem(Code.ROUND_NOT_COLLECTING)]
    with misbehaving(*first, task(2), *counted(1, 2), *counted(2, 2), *over()) as server:
        reporter, trainer = take_part(server, tmp_path, LATE)
        assert server.calls[5:9] == [TASK, CREATE, PATCH, COMMIT]
    assert [job.round for job in trainer.jobs] == [1, 2]
    assert [kind for kind in reporter.kinds() if kind in {"lost", "kept", "late", "accepted"}] == [
        "lost",
        "kept",
        "late",
        "accepted",
    ]


def test_an_agent_started_again_sends_what_it_kept_first(tmp_path: Path) -> None:
    stopped_before_it_counts(tmp_path, LATE)
    with misbehaving(message(DECLARATION), *counted(1, 2), *over()) as server:
        _, trainer = take_part(server, tmp_path, LATE)
        assert server.calls[:4] == [DECLARE, CREATE, PATCH, COMMIT]
    assert trainer.jobs == []


def test_a_run_that_discards_late_updates_is_not_sent_any(tmp_path: Path) -> None:
    stopped_before_it_counts(tmp_path, RUN)
    with misbehaving(message(DECLARATION), task(2, RUN), *counted(2, 2), *over()) as server:
        _, trainer = take_part(server, tmp_path, RUN)
    assert [job.round for job in trainer.jobs] == [2]


def test_a_round_held_again_from_the_same_adapter_takes_the_kept_update(tmp_path: Path) -> None:
    again = message(told().model_copy(update={"attempt": 2}))
    refused = problem(Code.ROUND_CLOSED)
    with misbehaving(
        message(DECLARATION), task(spec=RUN), whole(), config(), refused, again, *counted(1, 1), *over()
    ) as server:
        reporter, trainer = take_part(server, tmp_path, RUN)
    assert len(trainer.jobs) == 1
    assert reporter.kinds().count("accepted") == 1


def test_a_late_update_refused_for_its_tensors_is_dropped(tmp_path: Path) -> None:
    stopped_before_it_counts(tmp_path, LATE)
    plan = [created, arrived, problem(Code.INVALID_TENSOR)]
    with misbehaving(message(DECLARATION), *plan, *over()) as server:
        reporter, _ = take_part(server, tmp_path, LATE)
    assert "lost" in reporter.kinds()
    assert WorkFolder(tmp_path, "run").state.trained is None
