"""Eight sets of commonsense questions, as their authors and as the hub publish them."""

from pathlib import Path
from typing import Any

import pytest

from flexlora_client.training.data.examples import Choice
from flexlora_simulation.errors import DataError, ExperimentError
from flexlora_simulation.experiment import WorkloadOptions
from flexlora_simulation.workloads.commonsense import Commonsense
from flexlora_simulation.workloads.commonsense_sets import SETS
from tests.support.data_files import as_parquet
from tests.support.text_data_sets import COMMONSENSE, write_commonsense

EXPECTED = {
    "boolq": Choice("Fish swim.\nQuestion: do fish swim?\nAnswer:", (" no", " yes"), 1),
    "piqa": Choice("Question: Cut it\nAnswer:", (" Use a knife.", " Use a cloud."), 0),
    "siqa": Choice("Q: Ada fell. How is she?\nA:", (" glad", " hurt", " tall"), 1),
    "hellaswag": Choice(
        "Singing: A bird sits. Song It sings. Then it", (" flies away.", " is a car.", " reads.", " melts."), 0
    ),
    "winogrande": Choice("The cup fell on the floor as", (" the cup was slippery.", " the floor was slippery."), 0),
    "arc-e": Choice("Question: Which of these sings?\nAnswer:", (" a bird", " a fish"), 0),
    "arc-c": Choice("Question: Which of these sings?\nAnswer:", (" a bird", " a fish"), 1),
    "obqa": Choice("Which of these sings?", (" a bird", " a fish"), 0),
}
# what the hub's columns have otherwise than the authors' files
LISTED = {"choices": {"text": ["a bird", "a fish"], "label": ["A", "B"]}}
ON_THE_HUB: dict[str, dict[str, Any]] = {
    "boolq": {},
    "piqa": {"label": 0},
    "siqa": {"label": "2"},
    "hellaswag": {"label": "0"},
    "winogrande": {},
    "arc-e": {"question": "Which of these sings?", **LISTED},
    "arc-c": {"question": "Which of these sings?", **LISTED},
    "obqa": {"question_stem": "Which of these sings?", **LISTED},
}


def opened(folder: Path, **options: object) -> Commonsense:
    given = {"name": "commonsense", "data": str(folder), "model": "m", "options": options}
    return Commonsense(WorkloadOptions.model_validate(given))


def test_each_sets_own_files(tmp_path: Path) -> None:
    corpus = opened(write_commonsense(tmp_path)).corpus()
    assert list(EXPECTED) == list(SETS)
    for number, (name, choice) in enumerate(EXPECTED.items()):
        for items in (corpus.train, corpus.test):
            item = items[2 * number]
            assert (item.group, item.label, item.example) == (name, str(choice.answer), choice)


@pytest.mark.parametrize("name", SETS)
def test_the_hubs_columns(tmp_path: Path, name: str) -> None:
    row = {key: value for key, value in COMMONSENSE[name][2].items() if key != "question" or name in ("boolq", "siqa")}
    for part in ("train", "test" if "test" in SETS[name].test else "validation"):
        (tmp_path / name).mkdir(exist_ok=True)
        as_parquet(tmp_path / name / f"{part}-00000-of-00001", [{**row, **ON_THE_HUB[name]}])
    (item,) = opened(tmp_path, sets=[name]).corpus().test
    assert item.example == EXPECTED[name]


def test_options(tmp_path: Path) -> None:
    write_commonsense(tmp_path)
    corpus = opened(tmp_path, sets=["obqa", "piqa"], examples=1).corpus()
    assert [item.group for item in corpus.train] == ["obqa", "piqa"]
    assert len(corpus.test) == 4
    with pytest.raises(ExperimentError, match=r"sets: there is no 'arc'; there are boolq, piqa"):
        opened(tmp_path, sets=["arc"])
    with pytest.raises(ExperimentError, match="commonsense needs data"):
        Commonsense(WorkloadOptions(name="commonsense", model="m"))


def test_what_is_missing_or_wrong_is_named(tmp_path: Path) -> None:
    write_commonsense(tmp_path)
    (tmp_path / "siqa" / "dev-labels.lst").write_text("1\n")
    with pytest.raises(DataError, match="has 1 answers to 2 questions"):
        opened(tmp_path, sets=["siqa"]).corpus()
    (tmp_path / "siqa" / "dev-labels.lst").write_text("1\n4\n")
    with pytest.raises(DataError, match=r"dev\.jsonl, question 2: .*answer 3 of 3"):
        opened(tmp_path, sets=["siqa"]).corpus()
    (tmp_path / "piqa" / "valid-labels.lst").unlink()
    with pytest.raises(DataError, match=r"question 1: .*KeyError\('label'\)"):
        opened(tmp_path, sets=["piqa"]).corpus()
    with pytest.raises(DataError, match=r"boolq has no file train"):
        opened(tmp_path / "elsewhere").corpus()
