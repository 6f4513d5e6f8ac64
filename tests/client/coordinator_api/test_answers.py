"""Answers of a newer coordinator: what is not known is left alone, what must be known is refused with a sentence."""

import json
from typing import Any

import pytest

from flexlora_client.coordinator_api.answers import parse_message
from flexlora_client.coordinator_api.http_messages import Answer
from flexlora_client.errors import Unreachable
from flexlora_shared.messages.clients import ClientList
from flexlora_shared.messages.runs import RunDetail, RunStatus
from flexlora_shared.messages.tasks import Task
from flexlora_shared.messages.uploads import UploadStatus
from tests.client.agent.test_refusals import told
from tests.support.served_slices import RUN

TASK: dict[str, Any] = json.loads(told().model_dump_json())
UPLOAD = {"id": "1", "run": "run", "round": 1, "state": "OPEN", "offset": 0, "size": 9, "sha256": "0" * 64}


def answered(fields: Any) -> Answer:
    return Answer(200, {}, json.dumps(fields).encode())


def test_unknown_fields_are_left_alone_at_every_depth() -> None:
    newer = json.loads(json.dumps(TASK))
    for place in (newer, newer["adapter"], newer["spec"], newer["spec"]["model"], newer["spec"]["modules"][1]):
        place["min_agent_version"] = {"of": ["tomorrow"]}
    newer["spec"]["robust"] = [{"kind": "multi-krum", "byzantine_share": 0.2, "new": 1}]
    assert parse_message(Task, answered(newer)).spec.modules == RUN.modules


def test_a_state_that_is_not_known_is_shown_as_it_is() -> None:
    status = parse_message(UploadStatus, answered(UPLOAD | {"state": "SCANNING"}))
    assert status.state == "SCANNING"
    assert json.loads(status.model_dump_json())["state"] == "SCANNING"


@pytest.mark.parametrize(
    ("kind", "fields", "part"),
    [
        (
            Task,
            TASK | {"trainable": "C"},
            r"Task is not the one of this version \(trainable: Input should be 'slice', 'B'",
        ),
        (Task, TASK | {"round": "1"}, r"\(round: Input should be a valid integer\)"),
        (Task, {"run": "run"}, r"\(round: Field required; 6 more\)"),
        (Task, TASK | {"spec": TASK["spec"] | {"upload_dtype": "float8"}}, r"\(spec.upload_dtype: Input should be"),
        (ClientList, [], r"ClientList is not the one of this version \(the answer: Input should be an object\)"),
    ],
)
def test_what_is_known_is_checked_as_ever(kind: type[Task], fields: Any, part: str) -> None:
    with pytest.raises(Unreachable, match=part) as caught:
        parse_message(kind, answered(fields))
    assert not caught.value.transient


def test_an_answer_that_is_no_json() -> None:
    with pytest.raises(Unreachable, match=r"RunDetail is not the one of this version \(the answer: Invalid JSON"):
        parse_message(RunDetail, Answer(200, {}, b"<html>"))
    with pytest.raises(Unreachable, match="RunStatus is not the one"):
        parse_message(RunStatus, Answer(200, {}, b""))
