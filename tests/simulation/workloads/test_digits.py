"""Digits: scikit-learn's images, made domains, and the base model that is trained here."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from flexlora_client.training.data.examples import Pictured
from flexlora_simulation import simulate
from flexlora_simulation.errors import ExperimentError
from flexlora_simulation.experiment import WorkloadOptions, parse
from flexlora_simulation.workloads.contract import Item
from flexlora_simulation.workloads.digits import Digits

datasets = pytest.importorskip("sklearn.datasets")
from tests.support.simulated import folder_with_database, here  # noqa: E402

ALL = ["plain", "rotation", "inversion", "noise"]


def digits(**options: Any) -> Digits:
    return Digits(WorkloadOptions(name="digits", options=options))


def pixels(item: Item) -> Any:
    assert isinstance(item.example, Pictured)
    with Image.open(io.BytesIO(item.example.image)) as image:
        return np.asarray(image)


def test_images_are_those_of_scikit_learn() -> None:
    corpus, held = digits().corpus(), datasets.load_digits()
    assert (len(corpus.train), len(corpus.test)) == (1437, 360)
    assert [item.label for item in corpus.test] == [str(digit) for digit in held.target[::5]]
    np.testing.assert_array_equal(pixels(corpus.test[1]), np.rint(held.images[5] * 255 / 16))
    assert {item.group for item in corpus.train} == {"plain"}


def test_each_image_is_in_one_domain_and_changed_by_it() -> None:
    plain, made = digits().corpus(), digits(domains=ALL).corpus()
    assert [item.group for item in made.train[:8]] == ALL * 2
    assert made == digits(domains=ALL).corpus()
    before, after = ([pixels(item).astype(int) for item in corpus.train[:4]] for corpus in (plain, made))
    np.testing.assert_array_equal(after[0], before[0])
    np.testing.assert_array_equal(after[1], np.rot90(before[1]))
    np.testing.assert_array_equal(after[2], 255 - before[2])
    noise = np.stack(
        [pixels(a).astype(int) - pixels(b) for a, b in zip(made.train[3::4], plain.train[3::4], strict=True)]
    )
    assert 30 < noise.std() < 64  # less than it was drawn: grey values end at 0 and 255


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"options": {"domains": ["mirror"]}}, r"workload\.options\.domains\.0: Input should be 'plain', 'rotation'"),
        ({"options": {"domains": []}}, r"workload\.options\.domains"),
        ({"data": "digits/"}, "leave data out"),
    ],
)
def test_what_it_does_not_have_is_refused(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ExperimentError, match=sentence):
        Digits(WorkloadOptions(name="digits", **given))


@pytest.mark.slow
def test_the_base_model_is_trained_once_and_given_the_head() -> None:
    trained, longer = (digits(pretraining_steps=steps).base_model() for steps in (1, 2))
    assert trained == digits(pretraining_steps=1).base_model()
    weights = [load_file(Path(base.path) / "model.safetensors") for base in (trained, longer)]
    assert weights[0].keys() == weights[1].keys()
    assert any(not weights[0][name].equal(weights[1][name]) for name in weights[0])
    frozen = digits(pretraining_steps=1, head="frozen", head_norm=2).base_model()
    head = load_file(Path(frozen.path) / "model.safetensors")["classifier.weight"].numpy()
    np.testing.assert_allclose(head @ head.T, 4 * np.eye(10), atol=4e-3)


@pytest.mark.slow
def test_two_rounds_with_an_unseen_domain(tmp_path: Path) -> None:
    options = {"domains": ALL, "head": "frozen", "pretraining_steps": 1}
    experiment = parse(
        {
            "name": "domains",
            "workload": {"name": "digits", "options": options},
            "partition": {"by": "group", "unseen": 1},
            "resources": [{"rank": 1}, {"rank": 2}],
            "run": {"rounds": 2, "min_updates": 2, "min_clients": 2, "training": {"max_steps": 1, "batch_size": 16}},
            "evaluation": {"on": ["test", "unseen"], "ranks": "largest", "every": 2},
        }
    )
    figures = simulate(experiment, folder_with_database(tmp_path / "run"), executor=here).evaluations
    assert figures[figures.metric == "loss"].value.nunique() == 4  # two rounds of each
