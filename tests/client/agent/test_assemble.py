"""An agent built from the options of the command line."""

import gc
import weakref
from pathlib import Path

import pytest

from flexlora_client import credentials
from flexlora_client.agent import assemble
from flexlora_client.agent.assemble import RunOptions, take_part
from flexlora_client.agent.checks.before_declaring import check_before_declaring
from flexlora_client.agent.checks.subject import Subject
from flexlora_client.agent.rank_choice import RankChoice
from flexlora_client.agent.reporter import Reporter
from flexlora_client.credentials import Identity
from flexlora_client.training.contract import DEFAULT_COMPUTE
from flexlora_client.training.data.data_options import DataOptions
from tests.client.agent.test_loop import Interrupted
from tests.support.kit import Served
from tests.support.tiny_models import make_llama, make_run


def test_the_model_that_was_checked_is_gone_before_a_rank_is_measured(
    site: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, home, data = make_llama(tmp_path / "llama"), tmp_path / "home", tmp_path / "data.jsonl"
    data.write_text('{"text": "one two three"}\n{"text": "four five six"}\n')
    site.run(model={"id": str(base)}, modules=[module.model_dump(mode="json") for module in make_run(base).modules])
    client = site.enroll()
    assert client.key is not None
    identity = Identity(url=site.url, client_id=client.client_id, name="participant", api_key=client.key)
    credentials.save(home, identity)
    checked: list[weakref.ref[object]] = []

    def remember(subject: Subject, reporter: Reporter) -> None:
        check_before_declaring(subject, reporter)
        assert subject.loaded is not None
        assert subject.local_trainer is not None
        assert subject.local_trainer.participant == "participant"  # the name: ids are drawn by the coordinator
        checked.append(weakref.ref(subject.loaded.model))

    def measure(self: RankChoice) -> int:
        self.local_trainer.models.clear()
        gc.collect()
        assert [model() for model in checked] == [None]
        raise Interrupted

    monkeypatch.setattr(assemble, "check_before_declaring", remember)
    monkeypatch.setattr(RankChoice, "choose", measure)
    options = RunOptions("run", None, {}, DataOptions((data,)), 0, None, None, "cpu", None, DEFAULT_COMPUTE, None)
    with pytest.raises(Interrupted):
        take_part(home, None, options, as_json=False)
