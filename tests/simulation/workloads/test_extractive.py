"""SQuAD's format, as TeleQuAD has it."""

import json
from pathlib import Path

import pytest

from flexlora_client.training.data.examples import Prompted
from flexlora_simulation.errors import DataError, ExperimentError
from flexlora_simulation.experiment import WorkloadOptions
from flexlora_simulation.workloads.extractive import Extractive
from tests.support.data_files import as_parquet
from tests.support.text_data_sets import write_squad

PROMPT = "Context: The bird 0 sings.\nQuestion: Who sings?\nAnswer:\n"


def opened(folder: Path, **options: object) -> Extractive:
    given = {"name": "extractive", "data": str(folder), "model": "m", "options": {"scorer": "s", **options}}
    return Extractive(WorkloadOptions.model_validate(given))


def test_squads_own_files(tmp_path: Path) -> None:
    corpus = opened(write_squad(tmp_path)).corpus()
    assert [item.group for item in corpus.train] == ["Document 0", "Document 1"]
    assert corpus.test[0].example == Prompted(PROMPT, "bird", ("The bird",))


def test_questions_without_an_answer_may_have_one(tmp_path: Path) -> None:
    item = opened(write_squad(tmp_path), unanswerable="none").corpus().train[1]
    assert item.example == Prompted(PROMPT.replace("sings?", "swims?"), "none")


def test_the_hubs_columns(tmp_path: Path) -> None:
    answers = {"text": ["bird", "The bird"], "answer_start": [4, 0]}
    row = {"title": "Document 0", "context": "The bird 0 sings.", "question": "Who sings?", "answers": answers}
    for name in ("train-00000-of-00001", "validation-00000-of-00001"):
        as_parquet(tmp_path / name, [row])
    assert opened(tmp_path).corpus().test == opened(write_squad(tmp_path / "own", documents=1)).corpus().test


def test_a_file_of_another_form_is_refused(tmp_path: Path) -> None:
    write_squad(tmp_path)
    (tmp_path / "dev-v2.0.json").write_text(json.dumps({"data": [{"title": "x"}]}))
    with pytest.raises(DataError, match=r"not of SQuAD's form \(KeyError\('paragraphs'\)\)"):
        opened(tmp_path).corpus()
    (tmp_path / "dev-v2.0.json").write_text(json.dumps({"question": "x"}))
    with pytest.raises(DataError, match=r"dev-v2\.0\.json, line 1: no row of this data set"):
        opened(tmp_path).corpus()


def test_it_needs_a_scorer_and_data() -> None:
    with pytest.raises(ExperimentError, match=r"workload\.options\.scorer"):
        Extractive(WorkloadOptions(name="extractive", data="d", model="m"))
    with pytest.raises(ExperimentError, match="extractive needs data"):
        Extractive(WorkloadOptions(name="extractive", model="m", options={"scorer": "s"}))
