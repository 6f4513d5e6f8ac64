"""A participant's figures in its tracker, read back by the tracker itself."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from flexlora_client.agent.tracker import Tracker, settings_of
from flexlora_client.errors import BadInput, UsageError
from flexlora_shared.messages.runs import RunSpec
from tests.client.agent.test_loop import Listening, agent
from tests.support import kit
from tests.support.kit import Served
from tests.support.trainers import Nudge

TOLD: dict[str, Any] = {"round": 2, "metrics": {"loss": 0.25}}


@pytest.fixture
def spec() -> RunSpec:
    return RunSpec.model_validate(kit.spec())


def unheard(sentence: str) -> None:
    pytest.fail(sentence)


def tell(spec: RunSpec, track: str) -> Any:
    """Tell what an agent tells in a round of two steps; the tracker's own run."""
    tracker = Tracker(track, spec, unheard)
    for _ in range(2):  # it may be declared anew
        tracker.event("declared", "", {"rank": 4, "examples": 9})
    for step, loss in ((1, 3.0), (2, 2.0)):
        tracker.loss(2, step, 2, loss)
    tracker.event("evaluated", "", TOLD)
    tracker.event("waiting", "", {"waiting_for": "private"})
    run = tracker._tracker.tracker
    tracker.close()
    return run


def test_tensorboard_gets_losses_and_the_metrics_of_each_round(site: Served, tmp_path: Path) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    spec, reporter = site.run(rounds=2), Listening("run")
    reporter.track(Tracker(f"tensorboard={tmp_path / 'board'}", spec, unheard))
    with agent(site, spec, tmp_path / "home", Nudge(), reporter) as working:
        working.run()
    reporter.event("evaluated", **TOLD)
    reporter.close()
    found = accumulators.EventAccumulator(str(tmp_path / "board" / spec.name)).Reload()
    assert [(event.step, event.value) for event in found.Scalars("training/train_loss")] == [(1, 0.5), (2, 0.5)]
    assert [(event.step, event.value) for event in found.Scalars("evaluation/loss")] == [(2, 0.25)]
    assert [event.step for event in found.Scalars("training/loss_by_step")]
    [settings] = (tmp_path / "board" / spec.name).glob("*/hparams.yml")
    assert "\nrank: 4\n" in settings.read_text()
    assert "hold_rank: 4\n" in settings.read_text()


@pytest.mark.slow
def test_mlflow_gets_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: RunSpec) -> None:
    mlflow: Any = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setattr("mlflow.tracking._tracking_service.utils._tracking_uri", None, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    tell(spec, "mlflow")
    client = mlflow.MlflowClient()
    [run] = client.search_runs([client.get_experiment_by_name(spec.name).experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params.items() >= {"rank": "4", "examples": "9", "strategy": spec.strategy}.items()
    losses = client.get_metric_history(run.info.run_id, "training/loss_by_step")
    assert [(each.step, each.value) for each in losses] == [(3, 3.0), (4, 2.0)]
    assert [(each.step, each.value) for each in client.get_metric_history(run.info.run_id, "evaluation/loss")] == [
        (2, 0.25)
    ]


@pytest.mark.slow
def test_wandb_gets_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: RunSpec) -> None:
    wandb: Any = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    run = tell(spec, "wandb")
    assert run.config["rank"] == 4
    assert run.config["training.learning_rate"] == spec.training.learning_rate
    assert (run.settings.console, run.settings.disable_code, run.settings.disable_git) == ("off", True, True)
    wandb.teardown()  # now everything is in the file
    [log] = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    content = log.read_bytes()
    names = [b"training/loss_by_step", b"evaluation/loss", b"private"]
    assert [name in content for name in names] == [True, True, False]


def test_a_tracker_that_fails_does_not_end_the_agent(tmp_path: Path, spec: RunSpec) -> None:
    pytest.importorskip("tensorboard")
    said: list[str] = []
    tracker = Tracker(f"tensorboard={tmp_path}", spec, said.append)
    for _ in range(2):
        tracker.event("trained", "", {"round": "first", "metrics": {"loss": 1.0}})
    tracker.close()
    assert len(said) == 1
    assert said[0].startswith("tensorboard takes no more figures (")


def test_what_it_needs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: RunSpec) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(BadInput, match=r"needs a package that .*: pip install 'flexlora\[tensorboard\]'"):
        Tracker("tensorboard", spec, unheard)
    for nothing in ("tensorboard=", "mlflow=here", "paper"):
        with pytest.raises(UsageError, match="write tensorboard, tensorboard=FOLDER, mlflow or wandb"):
            Tracker(nothing, spec, unheard)


def test_a_folder_that_cannot_be_written(tmp_path: Path, spec: RunSpec) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match=r"--track tensorboard=.*/file does not start: "):
        Tracker(f"tensorboard={tmp_path / 'file'}", spec, unheard)


def test_gpus_that_several_processes_could_not_share_do_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: RunSpec
) -> None:
    """accelerate refuses two of NVIDIA's RTX 40 with an older driver, for what it would exchange between processes."""
    pytest.importorskip("tensorboard")
    state = importlib.import_module("accelerate.state")
    monkeypatch.setattr(state, "check_cuda_p2p_ib_support", lambda: False)
    monkeypatch.setattr(state.PartialState, "default_device", torch.device("cuda"))
    state.PartialState._reset_state()
    Tracker(f"tensorboard={tmp_path}", spec, unheard).close()
    state.PartialState._reset_state()


def test_settings_are_plain(spec: RunSpec) -> None:
    told = settings_of(spec)
    assert told["training.learning_rate"] == spec.training.learning_rate
    assert json.loads(json.dumps(told)) == told
