"""SLoRA's two stages: few numbers of each matrix are trained, the same for all; LoRA starts from their SVD."""

import shutil
import sqlite3
from functools import partial
from pathlib import Path

import pytest
import torch

from flexlora_server.adapter_files.global_adapter_torch import TorchGlobalAdapter
from flexlora_simulation import simulate
from flexlora_simulation.errors import ExperimentError
from flexlora_simulation.experiment import Experiment
from flexlora_simulation.methods.catalogue import method
from flexlora_simulation.methods.plan import Plan
from flexlora_simulation.methods.run_plan import run_plan
from flexlora_simulation.results.results import Results
from tests.support.simulated import here


def adapter(results: Results, run: str, number: int) -> TorchGlobalAdapter:
    folder = results.folder / "coordinator"
    with sqlite3.connect(folder / "flexlora.db") as database:
        [sha256] = database.execute(
            "SELECT sha256 FROM adapters WHERE run = ? AND number = ?", (run, number)
        ).fetchone()
    return TorchGlobalAdapter(folder / "blobs" / sha256[:2] / sha256)


def product(stored: TorchGlobalAdapter, module: str, rank: int | None = None) -> torch.Tensor:
    factors = stored.factors(module, rank)
    return factors.B.double() @ factors.A.double()


@pytest.fixture(scope="module")
def stages(experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Path, tuple[Results, ...]]:
    """The plan with its folder and its results."""
    folder, plan = tmp_path_factory.mktemp("slora"), method("slora, flexlora")(experiment)
    return plan, folder, run_plan(plan, folder, partial(simulate, executor=here))


@pytest.mark.slow
def test_the_second_stage_starts_from_the_svd_of_the_first(stages: tuple[Plan, Path, tuple[Results, ...]]) -> None:
    plan, _, (first, second) = stages
    assert (max(first.rounds["round"]), max(second.rounds["round"])) == (1, 3)
    sparse, lora = plan.stages
    density = sparse.sparse_density
    assert density is not None
    assert density == pytest.approx(2 * 32 / 32**2), "as many numbers as LoRA of rank 1 has"
    for layer in ("query", "value"):
        module = f"bert.encoder.layer.0.attention.self.{layer}"
        W = product(adapter(first, sparse.name, 1), module)
        changed = W.abs() > 1e-5  # the SVD leaves rounding errors elsewhere
        assert 0.5 * density < changed.double().mean() < 1.5 * density
        start = adapter(second, lora.name, 0)
        U, S, Vh = torch.linalg.svd(W)
        for rank in (1, 4):
            best = U[:, :rank] * S[:rank] @ Vh[:rank]
            assert torch.allclose(product(start, module, rank), best, atol=1e-6)
    assert torch.equal(start.extra("classifier.weight"), adapter(first, sparse.name, 1).extra("classifier.weight"))


@pytest.mark.slow
def test_what_is_done_is_not_done_again(stages: tuple[Plan, Path, tuple[Results, ...]]) -> None:
    plan, folder, results = stages
    again = run_plan(plan, folder)  # its processes never begin: there is nothing to train
    assert again[1].rounds.equals(results[1].rounds)


def test_two_stages_need_two_rounds(experiment: Experiment) -> None:
    short = experiment.model_copy(update={"run": {**experiment.run, "rounds": 1}})
    with pytest.raises(ExperimentError, match="two stages"):
        method("slora")(short)


@pytest.mark.slow
def test_what_an_experiment_cannot_start_from(
    experiment: Experiment, stages: tuple[Plan, Path, tuple[Results, ...]], tmp_path: Path
) -> None:
    def starting(name: str, folder: Path) -> Experiment:
        return experiment.model_copy(update={"name": name, "start_from": str(folder)})

    (sparse, _), (first, _) = stages[0].stages, stages[2]
    with pytest.raises(ExperimentError, match="no folder of an experiment"):
        simulate(starting("next", tmp_path / "nothing"), tmp_path / "a")
    with pytest.raises(ExperimentError, match=f"named {sparse.name!r} too"):
        simulate(starting(sparse.name, first.folder), tmp_path / "b")
    shutil.copytree(first.folder, tmp_path / "earlier")
    with sqlite3.connect(tmp_path / "earlier" / "coordinator" / "flexlora.db") as database:
        database.execute("UPDATE runs SET state = 'RUNNING'")
    with pytest.raises(ExperimentError, match="has not ended"):
        simulate(starting("next", tmp_path / "earlier"), tmp_path / "c")
