"""Models and data that real agents train on."""

import json
from pathlib import Path

import pytest
import torch

from tests.support.tiny_models import make_bert, make_llama


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama's directory."""
    return make_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Bert's directory; its classification head is made for other classes."""
    return make_bert(tmp_path_factory.mktemp("bert"))


def write_questions(path: Path, word: str, count: int = 24) -> Path:
    """A data file of prompts that are all to be answered with one word."""
    rows = ({"prompt": f"What is number {number}?", "completion": f" {word}"} for number in range(count))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
