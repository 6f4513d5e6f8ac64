"""A small experiment on a real model made here, run in this process."""

import pytest

from flexlora_simulation.experiment import Experiment, parse
from tests.support.tiny_models import make_bert

WORDS = {"bird": "the bird sings in the tree", "fish": "the fish swims under it", "tree": "a tree of green leaves"}


@pytest.fixture(scope="session")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """Six participants that train, one that does not; ranks 1 and 4; three a round."""
    folder = tmp_path_factory.mktemp("experiment")
    for part, count in (("train", 28), ("test", 2)):
        rows = [f"{text} {n},{label}" for n in range(count) for label, text in WORDS.items()]
        (folder / f"{part}.csv").write_text("\n".join(["text,category", *rows]))
    definition = {
        "name": "small",
        "workload": {"name": "banking77", "data": ".", "model": str(make_bert(folder / "model"))},
        "partition": {"participants": 7, "unseen": 1, "heldout": 0.25},
        "resources": [{"rank": 1}, {"rank": 4, "speed": 2.0}],
        "run": {
            "rounds": 4,
            "clients_per_round": 3,
            "min_clients": 3,
            "min_updates": 2,
            "training": {"learning_rate": 0.01, "batch_size": 4, "max_steps": 1, "max_length": 16},
        },
        "evaluation": {"on": ["test", "heldout"], "examples": 4, "every": 10},
    }
    return parse(definition, folder)
