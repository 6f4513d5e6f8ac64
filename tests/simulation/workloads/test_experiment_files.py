"""The experiment files of the repository are right in every field."""

from pathlib import Path

import pytest

from flexlora_shared.messages.runs import RunSpec
from flexlora_simulation import simulate
from flexlora_simulation.experiment import load
from flexlora_simulation.workloads.registry import open_workload
from tests.support.simulated import folder_with_database, here
from tests.support.tiny_models import make_llama, make_run

FILES = sorted(Path("experiments").glob("*.yaml"))
MADE = ("digits", "teacher-student")  # take neither data nor a model
TEXT = ("sni", "gsm8k", "commonsense", "extractive")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("llama"))


def test_every_text_workload_has_a_real_setting_and_a_quick_form() -> None:
    assert {f"{name}{form}" for name in TEXT for form in ("", "-quick")} <= {path.stem for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_experiment_file(path: Path, llama: Path) -> None:
    experiment = load(path)
    assert experiment.name == path.stem
    given = {} if experiment.workload.name in MADE else {"data": "data", "model": "model"}
    open_workload(experiment.workload.model_copy(update=given))
    RunSpec.model_validate({**make_run(llama).model_dump(mode="json"), **experiment.run})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["teacher-quick", "digits-quick", "domains-quick"])
def test_a_quick_form_that_needs_no_data_learns(tmp_path: Path, name: str) -> None:
    """As it stands. The others run in small on made data: see the tests of each workload."""
    if not name.startswith("teacher"):
        pytest.importorskip("sklearn")
    experiment = load(Path("experiments") / f"{name}.yaml")
    figures = simulate(experiment, folder_with_database(tmp_path / "run"), executor=here).evaluations
    metric = open_workload(experiment.workload).metric
    best = figures[(figures.metric == metric) & (figures.on == "test")].groupby("round").value.max()
    assert best.iloc[-1] > best.iloc[0]
