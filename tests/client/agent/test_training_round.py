"""What surrounds a round's training in the agent: folders, deadline, what is recorded when, and what is told."""

from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from flexlora_client.agent.local_trainer import LocalTrainer
from flexlora_client.agent.loop import Agent
from flexlora_client.errors import BadInput, DivergedError, OutOfMemory, Stopped
from flexlora_client.training.contract import Job, Outcome
from flexlora_client.training.data.examples import Plain
from flexlora_client.training.evaluation.evaluate import Measured
from flexlora_client.training.evaluation.sample import SampleSize
from tests.client.agent.test_loop import Listening, agent
from tests.support.kit import Served
from tests.support.trainers import Nudge


def test_a_job_has_folders_and_a_deadline_before_the_rounds(site: Served, tmp_path: Path) -> None:
    run, trainer = site.run(rounds=2, round_timeout=100.0), Nudge()
    with agent(site, run, tmp_path, trainer, Listening("run")) as working:
        working.run()
    folder = tmp_path / "runs" / "run"
    assert [(job.checkpoints, job.state) for job in trainer.jobs] == [
        (folder / "checkpoints", folder / "optimizer")
    ] * 2
    deadlines = [
        datetime.fromisoformat(site.round("run", number)["summary"]["deadline"]).timestamp() for number in (1, 2)
    ]
    for job, deadline in zip(trainer.jobs, deadlines, strict=True):
        assert job.deadline is not None
        assert job.deadline < deadline


def test_checkpoints_are_removed_when_the_update_is_recorded(site: Served, tmp_path: Path) -> None:
    class Saves(Nudge):
        def train(self, job: Job) -> Outcome:
            assert job.checkpoints is not None
            assert job.state is not None
            for folder in (job.checkpoints, job.state):
                folder.mkdir(exist_ok=True)
                (folder / "file").write_bytes(b"")
            return super().train(job)

    present: list[bool] = []
    checkpoints = tmp_path / "runs" / "run" / "checkpoints"
    listening = Listening("run", lambda kind: present.append(checkpoints.exists()) if kind == "trained" else None)
    with agent(site, site.run(rounds=1), tmp_path, Saves(), listening) as working:
        working.run()
    assert present == [False]
    assert (tmp_path / "runs" / "run" / "optimizer" / "file").exists(), "for the next round"


def test_a_stopped_training_ends_the_agent_and_keeps_its_checkpoint(site: Served, tmp_path: Path) -> None:
    class Stops(Nudge):
        def train(self, job: Job) -> Outcome:
            assert job.checkpoints is not None
            job.checkpoints.mkdir()
            job.notice("this machine is slow")
            raise Stopped("training stopped after step 3 of 9, a checkpoint is kept.")

    reporter = Listening("run")
    with agent(site, site.run(), tmp_path, Stops(), reporter) as working, pytest.raises(KeyboardInterrupt):
        working.run()
    assert [event["sentence"] for event in reporter.events[-2:]] == [
        "round 1: this machine is slow",
        "round 1: training stopped after step 3 of 9, a checkpoint is kept.",
    ]
    assert (tmp_path / "runs" / "run" / "checkpoints").exists()


def test_the_agent_says_that_the_deadline_ended_training(site: Served, tmp_path: Path) -> None:
    class Late(Nudge):
        def train(self, job: Job) -> Outcome:
            return replace(super().train(job), metrics={"train_steps": 12.0, "train_steps_planned": 40.0})

    reporter = Listening("run")
    with agent(site, site.run(rounds=1), tmp_path, Late(), reporter) as working:
        working.run()
    [told] = [event["sentence"] for event in reporter.events if event["event"] == "shortened"]
    assert told == "round 1: its deadline ended training after 12 of 40 steps"


def test_ctrl_c_while_the_trained_adapter_is_evaluated_loses_no_training(
    site: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, key, trainer = site.run(rounds=1), site.enroll().key, Nudge()

    def evaluate(self: LocalTrainer, *folders: Any, most: SampleSize | None = None, **more: Any) -> Measured:
        if most is not None:  # what was trained, on the examples of the slice
            raise KeyboardInterrupt
        return Measured({"loss": 1.0}, SampleSize(1))

    def evaluating(working: Agent) -> Agent:
        return replace(working, local_trainer=replace(working.local_trainer, heldout=(Plain("four"),)))

    monkeypatch.setattr(LocalTrainer, "evaluate", evaluate)
    with agent(site, run, tmp_path, trainer, Listening("run"), key) as working, pytest.raises(KeyboardInterrupt):
        evaluating(working).run()
    with agent(site, run, tmp_path, trainer, Listening("run"), key) as working:
        evaluating(working).run()
    assert len(trainer.jobs) == 1
    assert site.round("run", 1)["summary"]["train_metrics"] == {"train_loss": 0.5}


def test_the_room_held_for_the_update_is_free_before_it_is_written(site: Served, tmp_path: Path) -> None:
    held: list[bool] = []

    class EndsEarly(Nudge):
        def train(self, job: Job) -> Outcome:
            job.progress(3, 10, 0.5)
            held.append((job.output / ".reserved").exists())
            job.before_writing()
            held.append((job.output / ".reserved").exists())
            return super().train(job)

    with agent(site, site.run(rounds=1), tmp_path, EndsEarly(), Listening("run")) as working:
        working.run()
    assert held == [True, False]


def test_over_how_many_examples_a_loss_is_is_kept_beside_it(
    site: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = Measured({"loss": 1.0}, SampleSize(1))
    monkeypatch.setattr(LocalTrainer, "evaluate", lambda *_, **__: measured)
    with agent(site, site.run(rounds=1), tmp_path, Nudge(), Listening("run")) as working:
        replace(working, local_trainer=replace(working.local_trainer, heldout=(Plain("four"), Plain("five")))).run()
    kept = working.work_folder.results.kept
    assert [one and (one.loss, one.sample) for one in (kept.last, kept.served)] == [(1.0, 1)] * 2


@pytest.mark.parametrize("error", [OutOfMemory("evaluation needs more."), DivergedError("nan."), BadInput("--metric")])
def test_an_evaluation_that_fails_costs_the_figures_alone(
    site: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def evaluate(self: LocalTrainer, *folders: Any, **more: Any) -> Measured:
        raise error

    monkeypatch.setattr(LocalTrainer, "evaluate", evaluate)
    reporter = Listening("run")
    with agent(site, site.run(rounds=1), tmp_path, Nudge(), reporter) as working:
        replace(working, local_trainer=replace(working.local_trainer, heldout=(Plain("four"),))).run()
    failed = [event["sentence"] for event in reporter.events if event["event"] == "evaluation-failed"]
    assert failed == [
        f"the adapter of round 0 was not evaluated: {error}",  # before training
        f"round 1: the adapter trained here was not evaluated: {error}",
        f"the adapter of round 1 was not evaluated: {error}",  # after the run
    ]
    assert "accepted" in reporter.kinds()
    assert reporter.kinds()[-1] == "completed"
    assert site.round("run", 1)["summary"]["train_metrics"] == {"train_loss": 0.5}
