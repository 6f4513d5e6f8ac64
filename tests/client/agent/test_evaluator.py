"""A participant that only measures, against a real coordinator, with a real model."""

from pathlib import Path

import pytest

from flexlora_client.agent.evaluator import Evaluator
from flexlora_client.agent.local_trainer import LocalTrainer
from flexlora_client.agent.measure_slice import SliceMeasuring
from flexlora_client.agent.results import Results
from flexlora_client.agent.work_folder import WorkFolder
from flexlora_client.coordinator_api.calls import Api
from flexlora_client.coordinator_api.http import Http
from flexlora_client.coordinator_api.retry import COMMAND_BACKOFF, RetryPolicy
from flexlora_client.errors import RunEnded
from flexlora_client.training.data.examples import Prompted
from flexlora_client.training.models.load_model import Models
from flexlora_shared.messages.runs import RunSpec
from tests.client.agent.test_loop import Listening
from tests.support.kit import Served, encode, tensors
from tests.support.tiny_models import make_llama, make_run
from tests.support.trainers import Nudge

DATA = tuple(Prompted(f"{n}? ", f"{n}.") for n in range(3))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunSpec:
    """A run of a tiny Llama, not created yet."""
    return make_run(make_llama(tmp_path_factory.mktemp("llama")), target="q_proj")


class Training:
    """Somebody who trains, a round at a time: what the evaluator waits for happens while it sleeps."""

    def __init__(self, site: Served) -> None:
        self._site, self._participant, self.slept = site, site.enroll("trainer"), 0
        self._participant.declare("run", 4)

    def sleep(self, seconds: float) -> None:
        self.slept += 1
        while (answer := self._participant.call("GET", "/v1/runs/run/task", params={"wait": 5})).status_code == 204:
            pass
        if answer.status_code == 200:
            task = answer.json()
            update = encode(tensors(self._site.spec("run"), 4, seed=task["round"]))
            self._participant.upload(task, update, alpha=8.0)
            while self._site.round("run", task["round"])["summary"]["state"] != "PUBLISHED":
                pass


def start(site: Served, run: RunSpec) -> RunSpec:
    told = run.model_dump(mode="json", include={"model", "modules", "extra", "training"})
    return site.run("run", rounds=2, **told)


def evaluate(site: Served, run: RunSpec, home: Path, retry: RetryPolicy, rounds: int | None = None) -> Listening:
    reporter = Listening("run")
    learner = LocalTrainer(Nudge(), Models(), (), DATA, 1, "cpu", None)
    with Api(Http(site.url, site.enroll("evaluator").key), retry) as api:
        measuring = SliceMeasuring(api, run, WorkFolder(home, "run"), learner, reporter)
        Evaluator(measuring, 2, {}, rounds).run()
    return reporter


def test_every_adapter_is_measured_and_nobody_waits_for_the_evaluator(
    site: Served, run: RunSpec, tmp_path: Path
) -> None:
    spec = start(site, run)
    training = Training(site)
    reporter = evaluate(site, spec, tmp_path, RetryPolicy(COMMAND_BACKOFF, sleep=training.sleep))
    measured = [event for event in reporter.events if event["event"] == "evaluated"]
    assert [event["round"] for event in measured] == [0, 1, 2]
    assert reporter.kinds()[-1] == "completed"
    assert 2 <= training.slept <= 3
    for event in measured:
        told = {e["metric"]: e for e in site.round("run", event["round"])["summary"]["evaluations"]}
        assert told.keys() == {"loss", "perplexity", "exact_match", "rouge_l", "answers"}
        assert all((e["role"], e["rank"], e["participants"]) == ("evaluator", 2, 1) for e in told.values())
        assert told["loss"]["value"] == event["metrics"]["loss"]
    assert site.round("run", 2)["summary"]["participants"]["assigned"] == 1
    kept = Results(tmp_path / "runs" / "run").choose("global")[0]
    assert (kept.round, kept.loss) == (2, measured[-1]["metrics"]["loss"])


def test_it_stops_when_asked_or_when_the_run_is_cancelled(site: Served, run: RunSpec, tmp_path: Path) -> None:
    spec = start(site, run)
    retry = RetryPolicy(COMMAND_BACKOFF, sleep=lambda seconds: site.operator.expect(200, "POST", "/v1/runs/run/cancel"))
    reporter = evaluate(site, spec, tmp_path / "one", retry, rounds=1)
    assert reporter.kinds()[-2:] == ["evaluated", "stopped"]
    with pytest.raises(RunEnded, match="is CANCELLED"):
        evaluate(site, spec, tmp_path / "two", retry)
