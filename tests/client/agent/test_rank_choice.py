"""`--rank auto` in the agent: declared, declared anew when memory ends or a round takes much longer; settings are remembered."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer import BadParameter

from flexlora_client.agent import rank_choice
from flexlora_client.agent.assemble import describe_hardware
from flexlora_client.agent.local_trainer import LocalTrainer
from flexlora_client.agent.loop import Agent
from flexlora_client.agent.rank_choice import RankChoice
from flexlora_client.agent.work_folder import WorkFolder
from flexlora_client.cli.compute import ComputeOptions, parse_rank
from flexlora_client.coordinator_api.calls import Api
from flexlora_client.coordinator_api.http import Http
from flexlora_client.coordinator_api.retry import COMMAND_BACKOFF, RetryPolicy
from flexlora_client.errors import OutOfMemory
from flexlora_client.training.contract import Compute, Job, Outcome, Trainer
from flexlora_client.training.data.examples import Example, Plain
from flexlora_client.training.fitting.choice import Bounds, Choice, Option
from flexlora_client.training.models.devices import resolve_device
from flexlora_client.training.models.load_model import Models
from flexlora_shared.messages.clients import Declaration
from flexlora_shared.messages.runs import RunSpec
from tests.client.agent.test_loop import Interrupted, Listening
from tests.support.kit import Served, spec
from tests.support.tiny_models import make_llama, make_run
from tests.support.trainers import Nudge

EXAMPLES: list[Example] = [Plain("one two three"), Plain("four five six")]


class Full(Nudge):
    """Has no memory for ranks above 2; for others it needs a smaller micro-batch."""

    def train(self, job: Job) -> Outcome:
        if "8" in (job.adapter / "adapter_config.json").read_text().split('"r":')[1][:3]:
            raise OutOfMemory("cpu has too little memory for one example.")
        outcome = super().train(job)
        return Outcome(outcome.adapter, outcome.examples, outcome.metrics, Compute(micro_batch=2))


@contextmanager
def auto_agent(
    site: Served, base: Path, home: Path, trainer: Trainer, on: Callable[[str], None], **changes: Any
) -> Iterator[tuple[Agent, Listening]]:
    """An agent with `--rank auto` in a run of the tiny Llama."""
    described = make_run(base)
    model = {"id": str(base)}
    modules = [module.model_dump(mode="json") for module in described.modules]
    run, reporter = site.run(model=model, modules=modules, **changes), Listening("run", on)
    learner = LocalTrainer(trainer, Models(), EXAMPLES, (), 0, "cpu", None)
    choice = RankChoice(run, learner, Compute(), reporter)
    with Api(Http(site.url, site.enroll().key), RetryPolicy(COMMAND_BACKOFF)) as api:
        declaration = Declaration(rank=choice.choose().rank, examples=len(EXAMPLES))
        yield (
            Agent(api, run, WorkFolder(home, run.name), learner, declaration, reporter, rank_choice=choice),
            reporter,
        )


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("llama"))


def test_where_memory_ends_in_a_round_a_lower_rank_is_declared(site: Served, base: Path, tmp_path: Path) -> None:
    with auto_agent(site, base, tmp_path / "home", Full(), lambda kind: None) as (agent, reporter):
        agent.run()
    declared = [event["rank"] for event in reporter.events if event["event"] == "declared"]
    assert declared == [8, 4]
    chosen = [event for event in reporter.events if event["event"] == "rank-chosen"]
    assert [event["rank"] for event in chosen] == [8, 4]
    assert [row["rank"] for row in chosen[0]["options"]] == [8, 4, 2]
    assert "chosen" in chosen[0]["sentence"]
    assert next(event for event in reporter.events if event["event"] == "out-of-memory")["rank"] == 8
    accepted = [event["round"] for event in reporter.events if event["event"] == "accepted"]
    assert accepted == [1, 2], "a new declaration gives the task of the round again, at its rank"


@pytest.mark.slow
def test_a_lower_rank_is_trained_in_the_attempt_in_which_memory_ended(site: Served, base: Path, tmp_path: Path) -> None:
    def no_wait(kind: str) -> None:
        if kind == "waiting" and "out-of-memory" in reporter.kinds():
            raise Interrupted

    changes = {"min_clients": 2, "min_updates": 1, "rounds": 1}
    with auto_agent(site, base, tmp_path / "home", Full(), no_wait, **changes) as (agent, reporter):
        site.enroll().declare("run", 4)  # the round goes on with this one, which has not answered
        agent.max_rounds = 1
        agent.run()
    assert [event["attempt"] for event in reporter.events if event["event"] == "task"] == [1, 1]
    assert reporter.kinds()[-2:] == ["accepted", "stopped"]


def test_a_round_near_the_deadline_that_was_predicted_shorter_outdates_the_choice(tmp_path: Path) -> None:
    learner = LocalTrainer(Nudge(), Models(), EXAMPLES, (), 0, "cpu", None)
    run = RunSpec.model_validate(spec(round_timeout=100.0))
    chosen = Option(4, 4, 2, False, 2**30, seconds=50.0, transfer_seconds=1.0, verdict="fits")
    choice = RankChoice(run, learner, Compute(), Listening("run"), chosen)
    assert not choice.is_outdated(79.0)  # in time
    assert choice.is_outdated(81.0)
    choice.chosen = replace(chosen, seconds=70.0)
    assert not choice.is_outdated(81.0)  # about as predicted
    choice.keep(90.0)
    assert not choice.is_outdated(99.0)


@pytest.mark.slow
def test_a_slow_round_counts_and_its_rank_stays_where_nothing_fits_any_more(
    site: Served, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(*_: object, **__: object) -> Choice:
        slow = Option(2, 2, 1, False, 2**30, seconds=500.0, transfer_seconds=1.0, verdict="too slow")
        return Choice((slow,), None, Bounds(2**31, 80.0))

    with auto_agent(site, base, tmp_path / "home", Nudge(), lambda kind: None, rounds=1) as (agent, reporter):
        monkeypatch.setattr(rank_choice, "choose_rank", busy)
        monkeypatch.setattr(RankChoice, "is_outdated", lambda *_: True)
        agent.run()
    assert [event["rank"] for event in reporter.events if event["event"] in ("declared", "rank-kept")] == [8, 8]
    assert "failed" not in reporter.kinds()
    assert reporter.kinds()[-1] == "completed"


def test_settings_that_memory_forced_are_told_and_kept(site: Served, base: Path, tmp_path: Path) -> None:
    with auto_agent(site, base, tmp_path / "home", Full(), lambda kind: None, rounds=1, ranks=[2]) as (agent, reporter):
        agent.run()
    assert agent.local_trainer.compute == Compute(micro_batch=2)
    saved = next(event for event in reporter.events if event["event"] == "memory-saved")
    assert saved["settings"] == {"micro_batch": 2.0, "gradient_checkpointing": 0.0}
    assert site.round("run", 1)["summary"]["train_metrics"]["micro_batch"] == 2.0


def test_the_declaration_says_how_the_machine_computes() -> None:
    compute = Compute(quantization="nf4", micro_batch=2)
    device = describe_hardware([resolve_device("cpu")], compute).device
    assert device.endswith("quantization nf4, micro_batch 2")


def test_the_declaration_counts_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = SimpleNamespace(name="small", total_memory=1), SimpleNamespace(name="large", total_memory=4)
    there = [large, small, large]
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: there[device.index])
    told = describe_hardware([torch.device("cuda", index) for index in range(3)])
    assert (told.device, told.memory_bytes) == ("2 x large, small", 9)


def test_the_options_are_those_of_the_training_contract() -> None:
    assert [(f.name, f.default) for f in fields(ComputeOptions)] == [(f.name, f.default) for f in fields(Compute)]


def test_a_rank_is_a_number_or_auto() -> None:
    assert (parse_rank("8"), parse_rank("auto")) == (8, None)
    for wrong in ("0", "-1", "much"):
        with pytest.raises(BadParameter, match="neither a rank nor auto"):
            parse_rank(wrong)
