"""A whole small run through the client's own code: operator, enrollment, one agent, and what people look at afterwards."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from flexlora_client.agent.local_trainer import LocalTrainer
from flexlora_client.agent.loop import Agent
from flexlora_client.agent.reporter import Reporter
from flexlora_client.agent.work_folder import WorkFolder
from flexlora_client.coordinator_api.calls import Api
from flexlora_client.coordinator_api.http import Http
from flexlora_client.coordinator_api.retry import COMMAND_BACKOFF, RetryPolicy
from flexlora_client.errors import Refused
from flexlora_client.training.data.examples import Plain
from flexlora_client.training.models.load_model import Models
from flexlora_shared.messages.clients import Declaration, Enrollment, Hardware, TokenRequest
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.messages.uploads import Evaluation
from tests.support.kit import OPERATOR_KEY, spec
from tests.support.trainers import Nudge

RUN: dict[str, Any] = spec(
    modules=[{"name": "q_proj", "out_features": 3, "in_features": 4}],
    extra=[{"name": "score.weight", "shape": [2]}],
    ranks=[1, 2],
    robust=[{"kind": "norm-clip", "median_factor": 3.0}],
    training={"learning_rate": 0.001},
)
del RUN["weighting"]  # earlier releases do not know it


class Steps(Reporter):
    """The kinds of the agent's steps, in their order."""

    def __init__(self) -> None:
        super().__init__("run")
        self.kinds: list[str] = []

    def step(self, kind: str, sentence: str, **fields: Any) -> None:
        if kind != "waiting":
            self.kinds.append(kind)


def live(url: str, home: Path) -> list[str]:
    """The kinds of the agent's steps in a run of two rounds; whatever is not understood raises."""
    with _calls(url, OPERATOR_KEY) as operator, _calls(url, None) as stranger:
        operator.create_run(RunSpec.model_validate_json(json.dumps(RUN)))
        for action in ("start", "pause", "resume"):
            operator.change_run("run", action)
        token = operator.create_token(TokenRequest(note="ward 3")).token
        given = stranger.enroll(Enrollment(token=token, name="ward 3"))
        with _calls(url, given.api_key) as participant:
            kinds = _take_part(participant, home)
            participant.rotate_key()
        _look(operator)
        operator.revoke(given.client_id)
    return kinds


@contextmanager
def _calls(url: str, key: str | None) -> Iterator[Api]:
    with Api(Http(url, key), RetryPolicy(COMMAND_BACKOFF)) as api:
        yield api


def _take_part(api: Api, home: Path) -> list[str]:
    hardware = Hardware(device="cpu", memory_bytes=1, software="none")
    declaration = Declaration(rank=1, rank_pattern={"q_proj": 2}, examples=1, hardware=hardware)
    learner, steps = LocalTrainer(Nudge(), Models(), (Plain("one"),), (), 0, "cpu", None), Steps()
    Agent(api, api.run("run").spec, WorkFolder(home, "run"), learner, declaration, steps).run()
    api.evaluate("run", 2, Evaluation(rank=1, rank_pattern={"q_proj": 2}, examples=1, metrics={"loss": 0.5}))
    return steps.kinds


def _look(operator: Api) -> None:
    operator.runs()
    operator.rounds("run")
    operator.round("run", 2)
    operator.clients()
    with pytest.raises(Refused, match="round-state"):
        operator.retry_round("run", 2, ("0" * 32,))
