"""An agent that holds more than it trains: what it is served, trains, sends and keeps."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from flexlora_client.agent import train_round
from flexlora_client.agent.assemble import RunOptions, check_options
from flexlora_client.agent.local_trainer import LocalTrainer
from flexlora_client.agent.loop import Agent
from flexlora_client.agent.results import Results
from flexlora_client.agent.round_time import RoundTime
from flexlora_client.agent.work_folder import WorkFolder
from flexlora_client.coordinator_api.calls import Api
from flexlora_client.coordinator_api.http import Http
from flexlora_client.coordinator_api.retry import COMMAND_BACKOFF, RetryPolicy
from flexlora_client.errors import AdapterError, BadInput, UsageError
from flexlora_client.training.contract import ADAPTER_FILE, DEFAULT_COMPUTE
from flexlora_client.training.data.data_options import DataOptions
from flexlora_client.training.loop.standard import StandardTrainer
from flexlora_client.training.models.load_model import Models
from flexlora_client.training.models.slice_files import read_config
from flexlora_server.database.schema import Upload
from flexlora_shared.layout import key_A, key_B
from flexlora_shared.messages.clients import Declaration
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.messages.tasks import Trainable
from tests.client.agent.test_loop import Interrupted, Listening, agent
from tests.client.agent.test_trainable import QUESTIONS
from tests.support.kit import Served
from tests.support.tiny_models import make_llama, make_run
from tests.support.trainers import Nudge

Q = "layers.0.q_proj"
HOLDS: dict[str, Any] = {"rank": 2, "hold_rank": 8}
RESIDUAL: dict[str, Any] = {"strategy": "flexlora-residual", "scaling": {"alpha": 16.0}}


class Prefixes(Nudge):
    """Heeds what is trainable without a model: what lies in `job.adapter` is what it trains."""

    supports: tuple[Trainable, ...] = ("slice", "prefix")


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_what_it_measures_after_training_is_what_it_is_served_next(site: Served, tmp_path: Path) -> None:
    """Alone in a run whose largest rank it holds, what it trained with the rest beside it is the next global update."""
    made = make_run(make_llama(tmp_path / "base"), target=["q_proj", "up_proj"])
    fields = json.loads(made.model_dump_json()) | {"name": "run", "rounds": 3, "ranks": [2, 8]} | RESIDUAL
    run: RunSpec = site.run(**fields)
    models, reporter = Models(), Listening("run")
    learner = LocalTrainer(StandardTrainer(models), models, QUESTIONS, QUESTIONS, 0, "cpu", None, "me")
    with Api(Http(site.url, site.enroll().key), RetryPolicy(COMMAND_BACKOFF)) as api:
        declaration = Declaration(
            rank=8, examples=len(QUESTIONS)
        )  # in the first round all of it, so that there is a rest
        working = Agent(api, run, WorkFolder(tmp_path / "home", "run"), learner, declaration, reporter, max_rounds=1)
        working.run()
        working.declaration, working.max_rounds = Declaration(examples=len(QUESTIONS), **HOLDS), None
        working.run()
    events = reporter.events
    after = [event["metrics"]["heldout_loss"] for event in events if event["event"] == "trained"]
    before = [event["metrics"]["loss"] for event in events if event["event"] == "evaluated"]
    assert len(after) == 3
    assert before[1:] == [pytest.approx(loss, rel=1e-4) for loss in after]
    assert after[2] < after[1] < after[0] < before[0]
    declared = [(event["rank"], event["hold_rank"]) for event in events if event["event"] == "declared"]
    assert declared == [(8, 8), (2, 8)]
    kept, folder = Results(tmp_path / "home" / "runs" / "run").choose("own")
    assert kept.rank == read_config(folder, run).r == 8


def test_it_sends_the_first_directions_and_keeps_all(
    site: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, trainer, reporter = site.run(rounds=1, **RESIDUAL), Prefixes(), Listening("run")
    sizes = list[int]()
    monkeypatch.setattr(RoundTime, "training_deadline", lambda *asked: sizes.append(asked[-1]))
    with agent(site, run, tmp_path, trainer, reporter, **HOLDS) as working:
        working.run()
    (job,) = trainer.jobs
    assert job.trainable == "prefix"
    assert job.frozen is not None
    config = read_config(job.adapter, run)
    assert (config.r, config.lora_alpha) == (2, 4.0), "with the scaling of rank 8: 16 / 8"
    (input_,) = site.round("run", 1)["inputs"]
    with site.store.reading() as tx:
        announced = tx.session.get_one(Upload, input_["upload_id"]).announced
    assert (announced["rank"], announced["hold_rank"], announced["alpha"]) == (2, 8, 4.0)
    kept, folder = Results(tmp_path / "runs" / "run").choose("own")
    own, served = load_file(folder / ADAPTER_FILE), load_file(job.adapter / ADAPTER_FILE)
    assert kept.rank == 8
    assert torch.equal(own[key_A(Q)][:2], served[key_A(Q)] + 0.01)
    assert torch.equal(own[key_A(Q)][2:], load_file(job.frozen / ADAPTER_FILE)[key_A(Q)])
    assert own[key_B(Q)].shape == (20, 8)
    (told,) = [event["sentence"] for event in reporter.events if event["event"] == "task"]
    assert told.startswith("round 1 of 1: rank 2 (holding 8), until 2")
    assert sizes == [(job.adapter / ADAPTER_FILE).stat().st_size], "time is kept for sending what is trained"


def test_an_update_of_another_rank_of_the_same_slice_is_not_sent(site: Served, tmp_path: Path) -> None:
    """It was trained before the participant was started anew with another rank."""
    run, key, reporter = site.run(rounds=1, min_clients=1, **RESIDUAL), site.enroll().key, Listening("run")

    class Ends(Listening):
        def bytes_bar(self, label: str) -> Any:
            if label == "uploading":
                raise Interrupted
            return super().bytes_bar(label)

    with agent(site, run, tmp_path, Prefixes(), Ends("run"), key, **HOLDS) as working, pytest.raises(Interrupted):
        working.run()
    work = WorkFolder(tmp_path, "run", working.work_folder.basis)
    kept = work.state.trained
    assert kept is not None
    found = [work.find_trained(1, kept.adapter, "prefix", (rank, {}, held)) for rank, held in ((2, 8), (4, 8), (2, 16))]
    assert found == [kept, None, None]
    with agent(site, run, tmp_path, trainer := Prefixes(), reporter, key, **HOLDS) as again:
        again.run()
    assert trainer.jobs == []
    assert Results(tmp_path / "runs" / "run").choose("own")[0].rank == 8


def test_without_room_for_the_whole_the_update_counts(
    site: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> Path:
        raise AdapterError("cannot be written (no space left); free space.")

    monkeypatch.setattr(train_round, "join_slice", full)
    reporter = Listening("run")
    with agent(site, site.run(rounds=1, **RESIDUAL), tmp_path, Prefixes(), reporter, **HOLDS) as working:
        working.run()
    assert "own-not-kept" in reporter.kinds()
    assert "accepted" in reporter.kinds()
    with pytest.raises(BadInput, match="no adapter trained here"):
        Results(tmp_path / "runs" / "run").choose("own")


def test_a_loop_that_trains_slices_only_is_given_no_part_of_one(site: Served, tmp_path: Path) -> None:
    run, trainer = site.run(rounds=1, **RESIDUAL), Nudge()
    with agent(site, run, tmp_path, trainer, Listening("run"), **HOLDS) as working, pytest.raises(BadInput) as caught:
        working.run()
    assert "say trainable 'prefix'" in str(caught.value)
    assert trainer.jobs == []


@pytest.mark.parametrize(
    ("fields", "said"),
    [({"rank": None}, "--rank auto chooses what is held, too"), ({"rank": 2, "evaluates_only": True}, "an evaluator")],
)
def test_what_it_cannot_be_told(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        check_options(options(hold_rank=8, **fields))


def test_one_gpu_by_two_names_is_not_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_options(options(rank=2, device="cuda,cuda:1"))
    with pytest.raises(UsageError, match="several devices must be different GPUs"):
        check_options(options(rank=2, device="cuda,cuda:0"))


def options(**fields: Any) -> RunOptions:
    usual: dict[str, Any] = {
        "run": "run",
        "rank_pattern": {},
        "data": DataOptions(data=()),
        "answers": 0,
        "model_path": None,
        "trainer": None,
        "device": "cpu",
        "threads": None,
        "compute": DEFAULT_COMPUTE,
        "max_rounds": None,
    }
    return RunOptions(**usual | fields)
