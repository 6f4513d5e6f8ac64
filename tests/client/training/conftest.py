"""Models made once, and PEFT's one deprecation."""

from pathlib import Path

import pytest
import torch

from tests.support.tiny_models import make_bert, make_llama


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Plain PEFT, which the tests compare with, asks transformers under an attribute's former name."""
    ignored = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(ignored)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama's directory."""
    return make_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Bert's directory."""
    return make_bert(tmp_path_factory.mktemp("bert"))
