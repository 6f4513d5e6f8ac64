"""A coordinator that asks for something else than was agreed: nothing is downloaded or trained for it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flexlora_client.agent.agreement import definition_digest
from flexlora_client.agent.work_folder import WorkFolder
from flexlora_client.errors import Exit, NotAgreed
from flexlora_server.lifecycle import find_task
from flexlora_shared.messages.runs import ExtraTensor, RunSpec
from flexlora_shared.messages.tasks import Task
from tests.client.agent.test_loop import Listening, agent
from tests.support.kit import Served
from tests.support.trainers import Nudge

Lie = Callable[[Task], Task]


def of_spec(**changes: Any) -> Lie:
    return lambda task: task.model_copy(update={"spec": task.spec.model_copy(update=changes)})


def of_training(**changes: Any) -> Lie:
    return lambda task: of_spec(training=task.spec.training.model_copy(update=changes))(task)


LIES: list[tuple[Lie, str]] = [
    (
        lambda task: of_spec(model=task.spec.model.model_copy(update={"id": "other"}))(task),
        "model.id is 'other' instead of",
    ),
    (of_training(epochs=1000), "training.epochs is '1000' instead of '1'"),
    (
        of_training(max_length=8192, learning_rate=1.0),
        "training.learning_rate is '1.0' instead of .*, training.max_length is",
    ),
    (of_spec(extra=(ExtraTensor(name="model.embed_tokens.weight", shape=(64, 8)),)), "joined: extra;"),
    (lambda task: of_spec(modules=task.spec.modules[:1])(task), "joined: modules;"),
    (lambda task: task.model_copy(update={"run": "another"}), "joined: another name;"),
    (lambda task: task.model_copy(update={"rank": 8}), "is for rank 8, this participant declared 4;"),
    (lambda task: task.model_copy(update={"rank_pattern": {"up_proj": 8}}), "is for rank 4, {'up_proj': 8}, this"),
    (lambda task: task.model_copy(update={"hold_rank": 8}), "is for rank 4, holding 8, this participant declared 4;"),
]


@pytest.mark.parametrize(("lie", "sentence"), LIES, ids=[sentence[:24] for _, sentence in LIES])
def test_a_task_of_another_definition_ends_with_a_sentence(
    site: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lie: Lie, sentence: str
) -> None:
    made = find_task.task_message
    monkeypatch.setattr(find_task, "task_message", lambda *given: lie(made(*given)))
    run, trainer, reporter = site.run(), Nudge(), Listening("run")
    with agent(site, run, tmp_path, trainer, reporter) as working, pytest.raises(NotAgreed, match=sentence) as caught:
        working.run()
    assert caught.value.exit_code is Exit.NOT_AGREED
    assert trainer.jobs == []
    assert "downloaded" not in reporter.kinds()


def test_a_run_of_the_same_name_is_not_the_one_that_was_joined(site: Served, tmp_path: Path) -> None:
    run = site.run()
    WorkFolder(tmp_path, "run").results.agree(run.model_copy(update={"rounds": run.rounds + 1}))
    with agent(site, run, tmp_path, Nudge(), Listening("run")) as working, pytest.raises(NotAgreed, match="rounds is"):
        working.run()


def test_a_round_goes_on_at_ranks_that_were_declared_before(site: Served, tmp_path: Path) -> None:
    """The place in a round keeps the ranks with which it began, also where the agent was started again with others."""
    run, trainer = site.run(rounds=1), Nudge()
    key = site.enroll().key

    class Killed(BaseException):
        """In the middle of round 1."""

    def kill(kind: str) -> None:
        if kind == "downloaded":
            raise Killed

    with agent(site, run, tmp_path, Nudge(), Listening("run", kill), key) as working, pytest.raises(Killed):
        working.run()
    with agent(site, run, tmp_path, trainer, Listening("run"), key, rank=2) as working:
        working.run()
    assert site.round("run", 1)["summary"]["state"] == "PUBLISHED"


def test_the_digest_does_not_depend_on_what_is_left_at_its_default(site: Served) -> None:
    run = site.run()
    written = run.model_dump(mode="json", exclude_defaults=True)
    assert definition_digest(RunSpec.model_validate(written, strict=False)) == definition_digest(run)
    assert definition_digest(run.model_copy(update={"rounds": 7})) != definition_digest(run)
