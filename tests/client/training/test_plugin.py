"""Custom training loops by name."""

from pathlib import Path

import pytest

from flexlora_client.errors import PluginError
from flexlora_client.training.loop.standard import StandardTrainer
from flexlora_client.training.plugin import load_trainer
from flexlora_shared.plugins import TRAINER_GROUP
from tests.support.plugins import install

CODE = """
class Good:
    def train(self, job):
        return job

class Demanding:
    def __init__(self, more):
        pass
    def train(self, job):
        pass

class Idle:
    pass

def train(job):
    pass
"""


@pytest.fixture(autouse=True)
def _modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_training.py").write_text(CODE)
    (tmp_path / "broken_training.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)


def test_a_class_with_train_is_made() -> None:
    trainer = load_trainer("own_training:Good")
    assert type(trainer).__name__ == "Good"
    standard = load_trainer("flexlora_client.training.loop.standard:StandardTrainer")
    assert isinstance(standard, StandardTrainer)


def test_one_that_an_installed_package_offers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offers = {"good": "own_training:Good", "broken": "broken_training:Good", "no-class": "own_training:train"}
    install(monkeypatch, tmp_path, "own", TRAINER_GROUP, offers)
    assert type(load_trainer("good")).__name__ == "Good"
    with pytest.raises(PluginError, match=r"'broken' cannot be used: .*ZeroDivisionError"):
        load_trainer("broken")
    with pytest.raises(PluginError, match="which is no type"):
        load_trainer("no-class")
    with pytest.raises(PluginError, match="offered are: broken, good, no-class"):
        load_trainer("other")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "own_training",
            "no installed package offers a training loop 'own_training'; offered are: none. Or write package.module:Class",
        ),
        (":Good", "write package.module:Class"),
        ("own_training:", "write package.module:Class"),
        ("no_such_training:Good", "ModuleNotFoundError.*PYTHONPATH"),
        ("broken_training:Good", "ZeroDivisionError"),
        ("own_training:Missing", "names no class with a method train"),
        ("own_training:Idle", "names no class with a method train"),
        ("own_training:train", "names no class with a method train"),
        ("own_training:Demanding", "cannot be made without arguments"),
    ],
)
def test_what_is_no_training_loop(name: str, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        load_trainer(name)
