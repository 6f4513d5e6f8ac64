"""The experiment files of the repository are right in every field."""

from pathlib import Path

import pytest

from flexlora_shared.messages.runs import RunSpec
from flexlora_simulation.experiment import load
from flexlora_simulation.workloads.registry import open_workload
from tests.support.tiny_models import make_llama, make_run

FILES = sorted(Path("experiments").glob("*.yaml"))
TEXT = ("sni", "gsm8k", "commonsense", "extractive")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("llama"))


def test_every_text_workload_has_a_real_setting_and_a_quick_form() -> None:
    assert {f"{name}{form}" for name in TEXT for form in ("", "-quick")} <= {path.stem for path in FILES}


@pytest.mark.parametrize("path", [path for path in FILES if path.stem.startswith(TEXT)], ids=lambda path: path.stem)
def test_an_experiment_file(path: Path, llama: Path) -> None:
    experiment = load(path)
    assert experiment.name == path.stem
    open_workload(experiment.workload.model_copy(update={"data": "data", "model": "model"}))
    RunSpec.model_validate({**make_run(llama).model_dump(mode="json"), **experiment.run})
