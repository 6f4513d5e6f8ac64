"""Agents in runs that train something else than the slice: their own loop, a loop that cannot, and another version's task."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from flexlora_client import credentials
from flexlora_client.agent.local_trainer import LocalTrainer
from flexlora_client.agent.loop import Agent
from flexlora_client.agent.work_folder import WorkFolder
from flexlora_client.coordinator_api.calls import Api
from flexlora_client.coordinator_api.http import Http
from flexlora_client.coordinator_api.retry import COMMAND_BACKOFF, RetryPolicy
from flexlora_client.credentials import Identity
from flexlora_client.errors import BadInput, Exit, Refused
from flexlora_client.training.contract import ADAPTER_FILE, Job, Outcome
from flexlora_client.training.data.examples import Example, Prompted
from flexlora_client.training.loop.standard import StandardTrainer
from flexlora_client.training.models.load_model import Models
from flexlora_shared.messages.clients import Declaration
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.messages.tasks import Trainable
from flexlora_shared.problems import Code
from tests.client.agent.test_loop import Listening, agent
from tests.client.agent.test_refusals import DECLARATION, DECLARE, TASK, over, take_part, told
from tests.support.command import call
from tests.support.connecting import Waits
from tests.support.kit import Served
from tests.support.misbehaving import answer, message, misbehaving, problem
from tests.support.served_slices import config, whole
from tests.support.tiny_models import make_llama, make_run
from tests.support.trainers import Nudge

QUESTIONS: Sequence[Example] = [Prompted(f"What is {n} plus one? ", f"It is {n + 1}.") for n in range(8)]


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("strategy", "ranks"),
    [
        ("ffa", [4]),
        ("rolora", [4]),
        pytest.param("fedsvd", [2, 4, 8], marks=pytest.mark.slow),
        ("flora", [2, 4, 8]),
        ("hetlora", [2, 4, 8]),
    ],
)
def test_what_an_agent_measures_after_training_is_what_it_is_served_next(
    site: Served, tmp_path: Path, strategy: str, ranks: list[int]
) -> None:
    """Alone in the run, its update is the next global update: base, slice and fresh adapter together where there is one."""
    made = make_run(make_llama(tmp_path / "base"), target=["q_proj", "up_proj"])
    fields = json.loads(made.model_dump_json()) | {"name": "run", "rounds": 2, "strategy": strategy, "ranks": ranks}
    run: RunSpec = site.run(**fields)
    models, reporter = Models(), Listening("run")
    learner = LocalTrainer(StandardTrainer(models), models, QUESTIONS, QUESTIONS, 0, "cpu", None, "me")
    declaration = Declaration(rank=4, examples=len(QUESTIONS))
    with Api(Http(site.url, site.enroll().key), RetryPolicy(COMMAND_BACKOFF)) as api:
        Agent(api, run, WorkFolder(tmp_path / "home", "run"), learner, declaration, reporter).run()
    after = [event["metrics"]["heldout_loss"] for event in reporter.events if event["event"] == "trained"]
    before = [event["metrics"]["loss"] for event in reporter.events if event["event"] == "evaluated"]
    assert len(after) == 2
    assert before[1] == pytest.approx(after[0], rel=1e-4)
    assert after[1] < after[0] < before[0]


class Scripted(Nudge):
    """Heeds what is trainable without a model: a fresh adapter starts from nothing, and lora_A may be frozen."""

    supports: tuple[Trainable, ...] = ("slice", "B", "A", "fresh")

    def train(self, job: Job) -> Outcome:
        outcome = super().train(job)
        served, made = load_file(job.adapter / ADAPTER_FILE), load_file(outcome.adapter)
        frozen = {"B": "lora_A", "A": "lora_B"}.get(job.trainable)
        made |= {key: served[key] for key in made if frozen and frozen in key}
        save_file(made, outcome.adapter)
        return outcome


def test_a_loop_of_ones_own_is_told_what_to_train(site: Served, tmp_path: Path) -> None:
    """In turn, where the strategy has it so; the coordinator takes no update of the other factor."""
    run, trainer = site.run(rounds=3, strategy="rolora", ranks=[4]), Scripted()
    with agent(site, run, tmp_path, trainer, Listening("run")) as working:
        working.run()
    assert [job.trainable for job in trainer.jobs] == ["B", "A", "B"]
    assert site.round("run", 3)["summary"]["state"] == "PUBLISHED"


class TrainsB(Scripted):
    """Would freeze lora_A, and knows nothing of freezing lora_B."""

    supports: tuple[Trainable, ...] = ("slice", "B")


def test_a_loop_that_cannot_freeze_B_ends_before_it_trains_another_factor(site: Served, tmp_path: Path) -> None:
    run = site.run(rounds=2, strategy="rolora", ranks=[4])
    with agent(site, run, tmp_path, Scripted(), Listening("run")) as working:
        working.local_trainer.trainer = trainer = TrainsB()
        with pytest.raises(BadInput, match="say trainable 'A'"):
            working.run()
    assert [job.trainable for job in trainer.jobs] == ["B"]


class Inherited(Nudge, StandardTrainer):
    """Its own training over the agent's, whose `supports` it inherits without a thought."""


@pytest.mark.parametrize("strategy", ["ffa", "flora"])
@pytest.mark.parametrize("loop", [Nudge, Inherited])
def test_a_loop_that_trains_slices_only_is_given_nothing_else(
    site: Served, tmp_path: Path, strategy: str, loop: type[Nudge]
) -> None:
    """Its update would be taken for something else, and count for a wrong one."""
    run, trainer = site.run(rounds=1, strategy=strategy, ranks=[4]), loop()
    with agent(site, run, tmp_path, trainer, Listening("run")) as working, pytest.raises(BadInput) as caught:
        working.run()
    assert "name that in an attribute `supports` of the same class" in str(caught.value)
    assert trainer.jobs == []
    assert site.round("run", 1)["summary"]["participants"]["accepted"] == 0


@pytest.mark.parametrize("trainable", ["B", "fresh"])
def test_a_loop_that_cannot_train_the_task_ends_before_the_download(tmp_path: Path, trainable: Trainable) -> None:
    """Nor is anything evaluated: the agent would only hold its place in the round for longer."""
    asked = told().model_copy(update={"trainable": trainable})
    with misbehaving(message(DECLARATION), message(asked), answer(204)) as server:
        with pytest.raises(BadInput, match=f"say trainable '{trainable}'"):
            take_part(server, tmp_path, Waits(), QUESTIONS)
        assert server.calls == [DECLARE, TASK, "PUT /v1/runs/run/rounds/1/failure"]


def test_the_announcement_says_what_was_trained(tmp_path: Path) -> None:
    """So that the coordinator can tell a fresh adapter from a slice; kept from before a restart, too."""
    asked, refusal = told().model_copy(update={"trainable": "B"}), problem(Code.FORBIDDEN)
    for plan in ([whole(), config(), refusal], [refusal]):
        with misbehaving(message(DECLARATION), message(asked), *plan) as server:
            with pytest.raises(Refused):
                take_part(server, tmp_path, Waits(), trainer=Scripted())
            assert json.loads(server.asked[-1].body)["trainable"] == "B"
            assert server.plan == []


def test_a_task_of_another_version_ends_the_command_with_a_sentence(tmp_path: Path) -> None:
    """An agent that does not know what to train must not train something else."""
    data, detail = tmp_path / "data.jsonl", over()[1]
    data.write_text(json.dumps({"text": "one"}) + "\n")
    later = json.dumps(told().model_dump(mode="json") | {"trainable": "biases"})
    planned = answer(200, later.encode(), Content_Type="application/json")
    with misbehaving(detail, message(DECLARATION), planned) as server:
        identity = Identity(url=server.url, client_id="c", name="me", api_key="a-key")
        credentials.save(tmp_path / "home", identity)
        result = call(
            *("run", "run", "--rank", "4", "--data", data, "--heldout-fraction", "0"),
            *("--trainer", "tests.support.trainers:Nudge"),
            env={"FLEXLORA_HOME": str(tmp_path / "home")},
        )
    assert result.code == Exit.UNREACHABLE
    assert "the coordinator's Task is not the one of this version" in result.err
    assert "'slice', 'B', 'A' or 'fresh'" in result.err
    assert result.err.strip().endswith("update the older side")
