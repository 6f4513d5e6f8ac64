"""The agent's loop against a real coordinator, with a training loop that needs no model."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from sqlalchemy import select

from flexlora_client.agent.local_trainer import LocalTrainer
from flexlora_client.agent.loop import Agent
from flexlora_client.agent.reporter import Reporter
from flexlora_client.agent.work_folder import WorkFolder
from flexlora_client.coordinator_api.calls import Api
from flexlora_client.coordinator_api.http import Http
from flexlora_client.coordinator_api.retry import COMMAND_BACKOFF, RetryPolicy
from flexlora_client.errors import BadInput, Refused, RunEnded
from flexlora_client.training.contract import Job, Outcome, Trainer
from flexlora_client.training.data.examples import Example, Plain
from flexlora_client.training.models.load_model import Models
from flexlora_server.database.schema import Assignment
from flexlora_shared.messages.clients import Declaration
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.problems import Code
from tests.support.kit import Served, encode, tensors
from tests.support.trainers import Elsewhere, NoExamples, Nudge, Raises, Renames, Returns, WrongShapes

EXAMPLES: Sequence[Example] = (Plain("one"), Plain("two"), Plain("three"))
Event = dict[str, Any]


class Listening(Reporter):
    """Keeps the events beside reporting them."""

    def __init__(self, run: str, on: Callable[[str], None] = lambda kind: None) -> None:
        super().__init__(run)
        self.events: list[Event] = []
        self._on = on

    def step(self, kind: str, sentence: str, **fields: Any) -> None:
        super().step(kind, sentence, **fields)
        self.events.append({"event": kind, "sentence": sentence, **fields})
        self._on(kind)

    def kinds(self) -> list[str]:
        return [event["event"] for event in self.events]


@contextmanager
def agent(
    site: Served, run: RunSpec, home: Path, trainer: Trainer, reporter: Reporter, key: str | None = None, **changes: Any
) -> Iterator[Agent]:
    """An agent of rank 4 with an identity of its own, or under `key`."""
    learner = LocalTrainer(trainer, Models(), EXAMPLES, (), 0, "cpu", None)
    declaration = Declaration.model_validate({"rank": 4, "examples": len(EXAMPLES), **changes})
    with Api(Http(site.url, key or site.enroll().key), RetryPolicy(COMMAND_BACKOFF)) as api:
        yield Agent(api, run, WorkFolder(home, run.name), learner, declaration, reporter)


def refused(working: Agent) -> Refused:
    """The refusal that ends the agent."""
    with pytest.raises(Refused) as caught:
        working.run()
    return caught.value


def test_it_takes_part_until_the_run_completes(site: Served, tmp_path: Path) -> None:
    run, trainer, reporter = site.run(rounds=3), Nudge(), Listening("run")
    with agent(site, run, tmp_path / "home", trainer, reporter) as working:
        working.run()
    round_events = ["task", "downloaded", "training", "trained", "accepted"]
    assert [kind for kind in reporter.kinds() if kind != "waiting"] == ["declared", *round_events * 3, "completed"]
    assert [job.round for job in trainer.jobs] == [1, 2, 3]
    summary = site.round("run", 3)["summary"]
    assert summary["state"] == "PUBLISHED"
    assert summary["participants"]["accepted"] == 1
    assert summary["train_metrics"] == {"train_loss": 0.5}
    assert not (tmp_path / "home" / "runs" / "run" / "output").exists()


def test_rank_patterns_reach_the_coordinator(site: Served, tmp_path: Path) -> None:
    run, trainer = site.run(rounds=1), Nudge()
    with agent(site, run, tmp_path, trainer, Listening("run"), rank_pattern={"up_proj": 8}) as working:
        working.run()
    config = json.loads((trainer.jobs[0].adapter / "adapter_config.json").read_bytes())
    assert config["rank_pattern"] == {"up_proj": 8}
    assert site.round("run", 1)["summary"]["state"] == "PUBLISHED"


def test_it_stops_after_the_rounds_asked_for(site: Served, tmp_path: Path) -> None:
    run, reporter = site.run(rounds=5), Listening("run")
    with agent(site, run, tmp_path, Nudge(), reporter) as working:
        Agent(**{**vars(working), "max_rounds": 2}).run()
    assert reporter.kinds().count("accepted") == 2
    assert reporter.kinds()[-1] == "stopped"


def test_a_cancelled_run_ends_the_agent(site: Served, tmp_path: Path) -> None:
    run = site.run(rounds=2)

    def cancel(kind: str) -> None:
        if kind == "trained":
            site.operator.expect(200, "POST", "/v1/runs/run/cancel")

    ended = pytest.raises(RunEnded, match="run run is CANCELLED")
    with agent(site, run, tmp_path, Nudge(), Listening("run", cancel)) as working, ended:
        working.run()


@pytest.mark.parametrize(("late_updates", "kind"), [("discard", "lost"), ("next-round", "late")])
def test_a_late_update_costs_the_round_at_most(site: Served, tmp_path: Path, late_updates: str, kind: str) -> None:
    run = site.run(rounds=2, round_timeout=100.0, min_clients=2, late_updates=late_updates)
    other, trained = site.enroll("other"), iter([1, 2])
    other.declare("run", 4)

    def come(wait: float = 0) -> Any:
        return other.call("GET", "/v1/runs/run/task", params={"wait": wait})

    def overtake(step: str) -> None:
        if step in {"declared", kind}:
            come()  # it takes two to begin a round
        if step == "trained":
            number = next(trained)
            other.upload(come(30).json(), encode(tensors(run, 4, seed=number)))
            if number == 1:
                site.clock.advance(101)
                while site.round("run", 1)["summary"]["state"] != "PUBLISHED":
                    pass

    reporter = Listening("run", overtake)
    with agent(site, run, tmp_path, Nudge(), reporter) as working:
        working.run()
    [late] = [event for event in reporter.events if event["event"] in {"lost", "late"}]
    assert late["event"] == kind
    assert late.get("code", Code.ROUND_CLOSED) == Code.ROUND_CLOSED
    assert late.get("counts_in", 2) == 2
    assert reporter.kinds().count("training") == 2
    assert reporter.kinds()[-1] == "completed"


def test_a_round_that_missed_its_quorum_loses_nothing(site: Served, tmp_path: Path) -> None:
    run = site.run(rounds=1, round_timeout=100.0)

    def miss_the_deadline(step: str) -> None:
        if step == "trained":
            site.clock.advance(101)

    reporter = Listening("run", miss_the_deadline)
    with agent(site, run, tmp_path, Nudge(), reporter) as working:
        working.run()
    assert reporter.kinds().count("training") == 1
    assert reporter.kinds().count("accepted") == 1
    assert reporter.kinds()[-1] == "completed"


class Interrupted(Exception):
    """Stands for the end of the process."""


def test_what_was_trained_before_the_end_is_sent_after_the_start(site: Served, tmp_path: Path) -> None:
    run, trainer, key = site.run(rounds=1), Nudge(), site.enroll().key

    class DiesBeforeTheUpload(Listening):
        """The first upload finds the process gone."""

        def bytes_bar(self, label: str) -> Any:
            if label == "uploading":
                raise Interrupted
            return super().bytes_bar(label)

    with agent(site, run, tmp_path, trainer, DiesBeforeTheUpload("run"), key) as working, pytest.raises(Interrupted):
        working.run()
    reporter = Listening("run")
    with agent(site, run, tmp_path, trainer, reporter, key) as working:
        working.run()
    assert len(trainer.jobs) == 1
    assert "kept" in reporter.kinds()
    assert "training" not in reporter.kinds()
    assert next(event["bytes"] for event in reporter.events if event["event"] == "downloaded") == 0
    assert reporter.kinds()[-1] == "completed"


def test_an_agent_that_ended_while_training_trains_again(site: Served, tmp_path: Path) -> None:
    run, key = site.run(rounds=1), site.enroll().key

    class Dies(Nudge):
        """Ends in the middle."""

        def train(self, job: Job) -> Outcome:
            (job.output / "half").write_bytes(b"half")
            raise KeyboardInterrupt

    with agent(site, run, tmp_path, Dies(), Listening("run"), key) as working, pytest.raises(KeyboardInterrupt):
        working.run()
    trainer = Nudge()
    with agent(site, run, tmp_path, trainer, Listening("run"), key) as working:
        working.run()
    assert len(trainer.jobs) == 1
    assert not (tmp_path / "runs" / "run" / "output").exists()


@pytest.mark.parametrize(
    ("trainer", "reason"),
    [
        (Raises(), r"trainers.py, line \d+: ZeroDivisionError: no batches"),
        (Elsewhere(), "must write one inside"),
        (NoExamples(), "at least one"),
        (WrongShapes(), "no adapter of this run: tensor"),
        (Returns(whole=None), "returns a NoneType; it must return an Outcome"),
        (Returns(adapter="adapter_model.safetensors"), "must be a Path"),
        (Renames(), "a file adapter_model.safetensors"),
        (Returns(examples=2.5), "reports 2.5 examples"),
        (Returns(examples="3"), "reports '3' examples"),
        (Returns(metrics=None), "must map names to numbers"),
        (Returns(metrics={"loss": "low"}), "must map names to numbers"),
        (Returns(metrics={7: 0.5}), "must map names to numbers"),
    ],
)
def test_a_training_loop_that_fails_ends_the_agent(site: Served, tmp_path: Path, trainer: Trainer, reason: str) -> None:
    with agent(site, site.run(), tmp_path, trainer, Listening("run")) as working, pytest.raises(BadInput, match=reason):
        working.run()


def test_a_failed_round_does_not_wait(site: Served, tmp_path: Path) -> None:
    run, reporter = site.run(rounds=1), Listening("run")
    with agent(site, run, tmp_path, Raises(), reporter) as working, pytest.raises(BadInput):
        working.run()
    last = {"event": "failed", "sentence": "round 1: failed; told the coordinator", "round": 1, "told": True}
    assert reporter.events[-1] == last
    with site.store.reading() as tx:
        told = tx.session.scalars(select(Assignment.failure)).one()
    assert told is not None
    assert told["kind"] == "training"


def test_a_failure_that_cannot_be_told_ends_the_agent_all_the_same(site: Served, tmp_path: Path) -> None:
    run, participant = site.run(rounds=1), site.enroll()

    def revoke(kind: str) -> None:
        if kind == "training":
            assert site.operator.call("DELETE", f"/v1/clients/{participant.client_id}").status_code == 204

    reporter = Listening("run", revoke)
    with (
        agent(site, run, tmp_path, Raises(), reporter, participant.key) as working,
        pytest.raises(BadInput, match="ZeroDivisionError"),
    ):
        working.run()
    assert reporter.events[-1]["told"] is False
    assert "could not tell the coordinator" in reporter.events[-1]["sentence"]


def test_what_is_waited_for_is_told_at_once_and_when_it_changes(site: Served, tmp_path: Path) -> None:
    run, other = site.run(rounds=1, min_clients=2), site.enroll("other")

    def come(kind: str) -> None:
        if kind == "waiting" and "accepted" not in reporter.kinds():
            other.declare("run", 4)
            other.call("GET", "/v1/runs/run/task", params={"wait": 0})
        if kind == "accepted":
            other.upload(other.task("run"), encode(tensors(run, 4)))

    reporter = Listening("run", come)
    with agent(site, run, tmp_path, Nudge(), reporter) as working:
        working.run()
    first = next(event for event in reporter.events if event["event"] == "waiting")
    assert "participant" in first["waiting_for"]
    assert first["sentence"] == f"waiting: {first['waiting_for']}"


def test_the_numbers_of_another_library_are_taken(site: Served, tmp_path: Path) -> None:
    trainer = Returns(examples=torch.tensor(3), metrics={"train_loss": torch.tensor(0.25)})
    with agent(site, site.run(rounds=1), tmp_path, trainer, Listening("run")) as working:
        working.run()
    assert site.round("run", 1)["summary"]["train_metrics"] == {"train_loss": 0.25}


def test_a_refused_tensor_costs_the_round_and_is_not_sent_again(site: Served, tmp_path: Path) -> None:
    run, trainer = site.run(norm_bound=1e-6), Nudge()

    def cancel(kind: str) -> None:
        if kind == "lost":
            site.operator.expect(200, "POST", "/v1/runs/run/cancel")

    reporter = Listening("run", cancel)
    with agent(site, run, tmp_path, trainer, reporter) as working:
        with pytest.raises(RunEnded):
            working.run()
        assert working.work_folder.state.trained is None
    lost = next(event for event in reporter.events if event["event"] == "lost")
    assert lost["code"] == Code.INVALID_TENSOR
    assert "q_proj" in lost["sentence"]
    assert len(trainer.jobs) == 1


def test_a_rank_the_run_does_not_allow(site: Served, tmp_path: Path) -> None:
    with (
        agent(site, site.run(), tmp_path, Nudge(), Listening("run"), rank=3) as working,
        pytest.raises(Refused) as caught,
    ):
        working.run()
    assert caught.value.code is Code.RANK_NOT_ALLOWED


def test_a_revoked_participant_stops(site: Served, tmp_path: Path) -> None:
    participant = site.enroll()
    run = site.run(rounds=2)

    def revoke(kind: str) -> None:
        if kind == "training":
            assert site.operator.call("DELETE", f"/v1/clients/{participant.client_id}").status_code == 204

    with agent(site, run, tmp_path, Nudge(), Listening("run", revoke), participant.key) as working:
        caught = refused(working)
    assert caught.code is Code.UNAUTHENTICATED
