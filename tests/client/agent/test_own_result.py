"""What the agent keeps for its participant while a run goes on: its own adapter, and parts that it does not share."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, load_file, save_file

from flexlora_client.agent.local_parts import LocalParts, local_parts
from flexlora_client.agent.loop import Agent
from flexlora_client.agent.results import Results
from flexlora_client.errors import UsageError
from flexlora_client.training.contract import ADAPTER_FILE, Job, Outcome
from flexlora_shared.layout import key_B, key_extra
from flexlora_shared.messages.runs import RunSpec
from tests.client.agent.test_loop import Interrupted, Listening, agent
from tests.support.kit import Served, spec
from tests.support.trainers import Nudge

Q = "layers.0.q_proj"
HEAD: Sequence[dict[str, Any]] = ({"name": "score.weight", "shape": [3, 24], "init": "ones"},)


def run_of(**changes: Any) -> RunSpec:
    return RunSpec.model_validate(spec(**changes), strict=False)


def own_tensors(home: Path) -> dict[str, torch.Tensor]:
    return load_file(Results(home / "runs" / "run").choose("own")[1] / ADAPTER_FILE)


def published(site: Served, number: int) -> dict[str, torch.Tensor]:
    return load(site.operator.call("GET", f"/v1/runs/run/rounds/{number}/adapter?rank=4").content)


class Remembering(Nudge):
    """Remembers what it trained."""

    def train(self, job: Job) -> Outcome:
        outcome = super().train(job)
        self.trained = load_file(outcome.adapter)
        return outcome


def test_the_own_adapter_is_what_was_trained(site: Served, tmp_path: Path) -> None:
    trainer = Remembering()
    with agent(site, site.run(rounds=2), tmp_path, trainer, Listening("run")) as working:
        working.run()
    own = own_tensors(tmp_path)
    assert own.keys() == trainer.trained.keys()
    assert all(torch.equal(own[key], trainer.trained[key]) for key in own)
    kept = Results(tmp_path / "runs" / "run").kept
    assert kept.last is not None
    assert (kept.last.round, kept.last.rank) == (2, 4)


@pytest.mark.parametrize("moment", ["before it is kept", "after it is kept"])
def test_it_survives_the_end_of_the_process(
    site: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    run, trainer, key = site.run(rounds=1), Nudge(), site.enroll().key

    class DiesBeforeTheUpload(Listening):
        """The first upload finds the process gone."""

        def bytes_bar(self, label: str) -> Any:
            if label == "uploading":
                raise Interrupted
            return super().bytes_bar(label)

    def dies(*_: object) -> None:
        raise Interrupted

    with monkeypatch.context() as patched, agent(site, run, tmp_path, trainer, DiesBeforeTheUpload("run"), key) as one:
        if moment == "before it is kept":
            patched.setattr(Results, "keep_own", dies)
        with pytest.raises(Interrupted):
            one.run()
    with agent(site, run, tmp_path, trainer, Listening("run"), key) as two:
        two.run()
    assert len(trainer.jobs) == 1
    own = own_tensors(tmp_path)
    assert torch.allclose(own[key_B(Q)], torch.full((20, 4), 0.01))


def test_a_full_disk_costs_the_own_adapter_not_the_update(
    site: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    reporter = Listening("run")
    monkeypatch.setattr(Results, "keep_own", full)
    with agent(site, site.run(rounds=1), tmp_path, Nudge(), reporter) as working:
        working.run()
    assert "own-not-kept" in reporter.kinds()
    assert "accepted" in reporter.kinds()


def keeping(working: Agent, parts: LocalParts) -> Agent:
    return Agent(**{**vars(working), "local_parts": parts})


def test_a_personal_head_stays_at_home(site: Served, tmp_path: Path) -> None:
    run, trainer = site.run(rounds=2, extra=HEAD), Nudge()
    head = key_extra("score.weight")
    with agent(site, run, tmp_path, trainer, Listening("run")) as working:
        keeping(working, local_parts("head", run)).run()
    assert torch.allclose(own_tensors(tmp_path)[head], torch.full((3, 24), 1.02))  # trained in two rounds
    for number in (1, 2):
        assert torch.equal(published(site, number)[head], torch.ones(3, 24))
    assert not torch.equal(published(site, 1)[key_B(Q)], published(site, 0)[key_B(Q)])


def test_B_stays_at_home_and_A_is_averaged(site: Served, tmp_path: Path) -> None:
    run, trainer = site.run(rounds=2, ranks=[4], strategy="fedavg"), Nudge()
    with agent(site, run, tmp_path, trainer, Listening("run")) as working:
        keeping(working, local_parts("B", run)).run()
    own, last = own_tensors(tmp_path), published(site, 2)
    assert torch.allclose(own[key_B(Q)], torch.full((20, 4), 0.02))
    assert torch.equal(last[key_B(Q)], torch.zeros(20, 4))
    A = key_B(Q).replace("lora_B", "lora_A")
    assert torch.allclose(last[A], published(site, 0)[A] + 0.02)
    assert torch.equal(own[A], last[A])


def test_parts_of_another_rank_begin_anew(tmp_path: Path) -> None:
    for name, rank in (("served", 8), ("own", 4)):
        (tmp_path / name).mkdir()
        save_file({"B": torch.ones(3, rank)}, tmp_path / name / ADAPTER_FILE)
    parts = LocalParts(frozenset({"B"}))
    assert parts.start_from(tmp_path / "served", tmp_path / "own", tmp_path / "start") == tmp_path / "served"
    assert parts.start_from(tmp_path / "served", None, tmp_path / "start") == tmp_path / "served"


@pytest.mark.parametrize(
    ("part", "changes", "reason"),
    [
        ("B", {}, "only runs of the strategy fedavg .* this one is of flexlora"),
        ("B", {"strategy": "hetlora"}, "this one is of hetlora"),
        ("head", {}, "no head to keep"),
        ("head", {"strategy": "flora", "extra": HEAD}, "a new adapter each round"),
    ],
)
def test_parts_that_cannot_be_kept(part: Any, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        local_parts(part, run_of(**changes))
