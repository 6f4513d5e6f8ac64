"""Metrics in TensorBoard's files, read back by TensorBoard itself."""

import sys
from pathlib import Path

import pytest

from flexlora_client.agent.tensorboard import TensorBoard
from flexlora_client.errors import BadInput
from tests.client.agent.test_loop import Listening, agent
from tests.support.kit import Served
from tests.support.trainers import Nudge


def test_the_metrics_of_each_round(site: Served, tmp_path: Path) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    reporter = Listening("run")
    reporter.tell(TensorBoard(tmp_path / "board", "run"))
    with agent(site, site.run(rounds=2), tmp_path / "home", Nudge(), reporter) as working:
        working.run()
    reporter.event("evaluated", round=2, metrics={"loss": 0.25})
    reporter.close()
    found = accumulators.EventAccumulator(str(tmp_path / "board" / "run")).Reload()
    assert [(event.step, event.value) for event in found.Scalars("training/train_loss")] == [(1, 0.5), (2, 0.5)]
    assert [(event.step, event.value) for event in found.Scalars("evaluation/loss")] == [(2, 0.25)]


def test_what_it_needs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("torch.utils.tensorboard", "tensorboard"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(BadInput, match=r"needs tensorboard, .*: pip install 'flexlora\[tensorboard\]'"):
        TensorBoard(tmp_path, "run")
