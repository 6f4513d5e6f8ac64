"""The agent's loop against answers that a sound coordinator rarely gives."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from flexlora_client.agent.local_trainer import LocalTrainer
from flexlora_client.agent.loop import Agent
from flexlora_client.agent.reporter import Reporter
from flexlora_client.agent.work_folder import WorkFolder
from flexlora_client.errors import BadInput, OutOfMemory, Refused
from flexlora_client.training.data.examples import Example, Plain
from flexlora_client.training.models.load_model import Models
from flexlora_shared.messages.clients import Declaration
from flexlora_shared.messages.runs import RunDetail, RunStatus
from flexlora_shared.messages.tasks import AdapterRef, Failure, Task
from flexlora_shared.problems import Code
from tests.support.connecting import Waits, connect
from tests.support.misbehaving import Misbehaving, Planned, answer, message, misbehaving, problem
from tests.support.served_slices import DATA, RANK, RUN, SHA256, config, slice_request, whole
from tests.support.trainers import Nudge

DECLARE, TASK, GET_RUN = "PUT /v1/runs/run/declaration", "GET /v1/runs/run/task", "GET /v1/runs/run"
FAILURE = "PUT /v1/runs/run/rounds/1/failure"
DECLARATION = Declaration(rank=RANK, examples=1)


def told() -> Task:
    """The task of round 1."""
    request = slice_request()
    adapter = AdapterRef(href=request.path, config_href=request.config_path, sha256=SHA256, size=len(DATA))
    return Task(
        run="run",
        round=1,
        attempt=1,
        rank=RANK,
        rank_pattern={},
        deadline="2030-01-01T00:00:00Z",
        adapter=adapter,
        spec=RUN,
    )


def task() -> Planned:
    return message(told())


def detail(state: str, waiting_for: str = "Nothing.") -> Planned:
    """The run, asked for."""
    fields = {
        "name": "run",
        "state": state,
        "strategy": "flexlora",
        "model": "tiny",
        "ranks": [2, 4, 8],
        "rounds": 2,
        "rounds_published": 2,
        "current_round": None,
        "round_state": None,
        "waiting_for": waiting_for,
        "participants": 1,
        "created_at": "2030-01-01T00:00:00Z",
        "reason": None,
    }
    status = RunStatus.model_validate_json(json.dumps(fields))
    return message(RunDetail(status=status, spec=RUN))


def over() -> list[Planned]:
    """The run is complete."""
    return [problem(Code.RUN_OVER, state="COMPLETED"), detail("COMPLETED")]


def idle(waiting_for: str = "Waiting for others.") -> Planned:
    """The run, asked for by an agent that has no work."""
    return detail("RUNNING", waiting_for)


def take_part(
    server: Misbehaving, home: Path, waits: Waits, heldout: Sequence[Example] = (), trainer: Nudge | None = None
) -> Nudge:
    trainer = trainer or Nudge()
    learner = LocalTrainer(trainer, Models(), (Plain("one"),), heldout, 0, "cpu", None)
    with connect(server.url, waits) as api:
        Agent(api, RUN, WorkFolder(home, "run"), learner, DECLARATION, Reporter("run")).run()
    assert server.plan == []
    return trainer


def test_a_lost_round_named_again_is_not_trained_again_and_asked_for_ever_less(tmp_path: Path) -> None:
    waits = Waits()
    declared = message(DECLARATION)
    lost = problem(Code.ROUND_CLOSED)
    with misbehaving(declared, task(), whole(), config(), lost, task(), idle(), *[task()] * 4, *over()) as server:
        assert len(take_part(server, tmp_path, waits).jobs) == 1
    assert waits.slept == [1.0, 2.0, 4.0, 8.0, 8.0]


def test_a_declaration_the_coordinator_lost_is_made_again(tmp_path: Path) -> None:
    declared = message(DECLARATION)
    with misbehaving(declared, problem(Code.NOT_DECLARED), declared, idle(), *over()) as server:
        take_part(server, tmp_path, Waits())
        assert server.calls[:5] == [DECLARE, TASK, DECLARE, GET_RUN, TASK]


def test_the_pause_the_coordinator_asks_for_is_kept(tmp_path: Path) -> None:
    waits = Waits()
    with misbehaving(message(DECLARATION), answer(204, Retry_After="7"), idle(), *over()) as server:
        take_part(server, tmp_path, waits)
    assert waits.slept == [7.0]


def test_a_pause_asked_for_as_a_date_is_kept(tmp_path: Path) -> None:
    waits = Waits()
    past = answer(204, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT")
    with misbehaving(message(DECLARATION), past, idle(), answer(204), *over()) as server:
        take_part(server, tmp_path, waits)
    assert waits.slept == [0.0, 1.0]


def test_a_run_that_is_over_before_the_start_is_no_error(tmp_path: Path) -> None:
    with misbehaving(*over()) as server:
        assert take_part(server, tmp_path, Waits()).jobs == []


@pytest.mark.parametrize(
    "code", [Code.INVALID_HEADER, Code.SIZE_IMPOSSIBLE, Code.RANK_MISMATCH, Code.EXAMPLES_MISMATCH]
)
def test_an_update_refused_for_its_form_ends_the_agent_and_is_not_kept(tmp_path: Path, code: Code) -> None:
    with misbehaving(message(DECLARATION), task(), whole(), config(), problem(code), answer(204)) as server:
        with pytest.raises(Refused) as caught:
            take_part(server, tmp_path, Waits())
        assert caught.value.code is code
        assert server.calls[-1] == FAILURE, "the round does not wait for it"
    assert WorkFolder(tmp_path, "run").state.trained is None


def test_a_diverged_update_is_not_trained_again_in_its_round(tmp_path: Path) -> None:
    declared, diverged = message(DECLARATION), problem(Code.INVALID_TENSOR)
    planned = (task(), whole(), config(), diverged, answer(204), task(), idle(), *over())
    with misbehaving(declared, *planned) as server:
        assert len(take_part(server, tmp_path, Waits()).jobs) == 1
        failure = Failure.model_validate_json(server.asked[server.calls.index(FAILURE)].body)
    assert failure.reason == "the update was refused with invalid-tensor"


def test_a_last_download_that_fails_does_not_spoil_a_complete_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with misbehaving(*over(), problem(Code.ADAPTER_NOT_PUBLISHED)) as server:
        take_part(server, tmp_path, Waits(), [Plain("two")])
    said = capsys.readouterr().err.splitlines()
    assert "the final adapter was not evaluated" in said[-2]
    assert "the run is complete" in said[-1]


class Broken(list[Example]):
    """Examples that cannot be read to their end."""

    def __init__(self, error: Exception) -> None:
        super().__init__([Plain("two")])
        self._error = error

    def __iter__(self) -> NoReturn:
        raise self._error


@pytest.mark.parametrize(
    ("error", "kind", "part"),
    [
        (IndexError("list index out of range"), BadInput, r"evaluation failed in .*, line \d+: IndexError: list"),
        (torch.OutOfMemoryError("CUDA out of memory"), OutOfMemory, "evaluation needs more memory"),
    ],
)
def test_an_evaluation_that_fails_in_foreign_code_is_a_sentence(
    tmp_path: Path, error: Exception, kind: type[Exception], part: str
) -> None:
    learner = LocalTrainer(Nudge(), Models(), (), Broken(error), 0, "cpu", None)
    with pytest.raises(kind, match=part):
        learner.evaluate(RUN, tmp_path)
