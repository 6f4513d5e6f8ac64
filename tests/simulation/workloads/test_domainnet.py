"""DomainNet from a folder of its own form."""

from pathlib import Path
from typing import Any

import pytest

from flexlora_client.training.data.examples import Pictured
from flexlora_simulation import simulate
from flexlora_simulation.errors import DataError, ExperimentError
from flexlora_simulation.experiment import WorkloadOptions, parse
from flexlora_simulation.workloads.domainnet import DomainNet
from tests.support.simulated import folder_with_database, here
from tests.support.tiny_models import image_file, make_vit

DOMAINS, CLASSES = ("clipart", "real", "sketch"), ("aircraft carrier", "apple", "bee")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("domainnet")
    for place, domain in enumerate(DOMAINS):
        for part, count in (("train", 4), ("test", 2)):
            lines = []
            for number, name in enumerate(CLASSES):
                (folder / domain / name).mkdir(parents=True, exist_ok=True)
                for n in range(count):
                    path = f"{domain}/{name}/{part}_{n}.jpg"
                    (folder / path).write_bytes(image_file((80 * place, 80 * number, 20 * n), side=8))
                    lines.append(f"{path} {number}\n")
            (folder / f"{domain}_{part}.txt").write_text("".join(lines))
    return folder


def domainnet(data: Path, model: Path = Path("none"), **options: Any) -> DomainNet:
    return DomainNet(WorkloadOptions(name="domainnet", data=str(data), model=str(model), options=options))


def test_pictures_have_their_class_and_domain(data: Path) -> None:
    corpus = domainnet(data).corpus()
    assert (len(corpus.train), len(corpus.test)) == (36, 18)
    assert [item.group for item in corpus.test] == [domain for domain in DOMAINS for _ in range(6)]
    assert [item.label for item in corpus.test[:6]] == [name for name in CLASSES for _ in range(2)]
    last = corpus.train[-1].example
    assert last == Pictured((data / "sketch" / "bee" / "train_3.jpg").read_bytes(), 2)


def test_domains_and_classes_can_be_chosen(data: Path) -> None:
    corpus = domainnet(data, domains=["sketch", "real"], classes=2).corpus()
    assert {item.group for item in corpus.train} == {"real", "sketch"}
    assert {item.label for item in corpus.train} == set(CLASSES[:2])


def test_the_base_model_has_the_classes_in_the_order_of_their_numbers(data: Path) -> None:
    assert domainnet(data).base_model().labels == CLASSES
    assert domainnet(data, classes=2).base_model().labels == CLASSES[:2]


def test_what_is_missing_is_named(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match=r"domainnet needs data, .* and model, a ViT"):
        DomainNet(WorkloadOptions(name="domainnet"))
    with pytest.raises(DataError, match=r"holds no DOMAIN_train\.txt"):
        domainnet(tmp_path).corpus()
    with pytest.raises(DataError, match="has no domain painting; there are clipart, real, sketch"):
        domainnet(data, domains=["painting"]).corpus()
    (tmp_path / "real_train.txt").write_text("real/bee/gone.jpg 0\n")
    with pytest.raises(DataError, match=r"real_train\.txt lists real/bee/gone\.jpg: No such file"):
        domainnet(tmp_path).corpus()
    (tmp_path / "real_train.txt").write_text("real/bee/gone.jpg\n")
    with pytest.raises(DataError, match=r"real_train\.txt is no list of DomainNet"):
        domainnet(tmp_path).corpus()
    (tmp_path / "real_train.txt").write_text("real/bee/gone.jpg 1\n")
    with pytest.raises(DataError, match="leave out a class below 1"):
        domainnet(tmp_path).base_model()


def test_two_rounds_with_an_unseen_domain(data: Path, tmp_path: Path) -> None:
    model = make_vit(tmp_path / "vit")
    experiment = parse(
        {
            "name": "domainnet",
            "workload": {"name": "domainnet", "data": str(data), "model": str(model)},
            "partition": {"by": "group", "unseen": 1},
            "resources": [{"rank": 1}, {"rank": 2}],
            "run": {"rounds": 2, "min_updates": 2, "min_clients": 2, "training": {"max_steps": 1, "batch_size": 4}},
            "evaluation": {"on": ["test", "unseen"], "ranks": "largest", "every": 2, "groups": True},
        }
    )
    figures = simulate(experiment, folder_with_database(tmp_path / "run"), executor=here).evaluations
    last = figures[figures["round"] == 2].set_index(["on", "metric"])
    assert last.examples["test", "accuracy"] == 18
    assert last.examples["unseen", "accuracy"] == 12
    assert [last.examples["test", f"accuracy.{domain}"] for domain in DOMAINS] == [6, 6, 6]
    of_domains = [last.value["test", f"accuracy.{domain}"] for domain in DOMAINS]
    assert last.value["test", "accuracy"] == pytest.approx(sum(of_domains) / 3)  # each has a third of the pictures
    (unseen,) = {metric for on, metric in last.index if on == "unseen" and "." in metric}
    assert last.value["unseen", "accuracy"] == last.value["unseen", unseen]
