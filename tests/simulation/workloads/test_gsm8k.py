"""GSM8K's files, and the final answer of a solution."""

import json
from decimal import Decimal
from pathlib import Path

import pytest

from flexlora_client.training.data.examples import Prompted
from flexlora_simulation.errors import DataError, ExperimentError
from flexlora_simulation.experiment import WorkloadOptions
from flexlora_simulation.workloads.gsm8k import Gsm8k, exact_answer, final_answer
from tests.support.data_files import as_parquet
from tests.support.text_data_sets import write_gsm8k


def opened(folder: Path, **options: object) -> Gsm8k:
    return Gsm8k(
        WorkloadOptions.model_validate({"name": "gsm8k", "data": str(folder), "model": "m", "options": options})
    )


def test_questions_and_solutions_are_read(tmp_path: Path) -> None:
    corpus = opened(write_gsm8k(tmp_path)).corpus()
    assert (len(corpus.train), len(corpus.test)) == (8, 2)
    assert corpus.train[3].example == Prompted("Question: What is 3 + 3?\nAnswer:\n", "3 + 3 = 6\n#### 6")


def test_the_hubs_files_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("train-00001-of-00002", "train-00000-of-00002", "test-00000-of-00001"):
        as_parquet(tmp_path / name, [{"question": name, "answer": "#### 1"}])
    train = opened(tmp_path).corpus().train
    assert [str(item.example)[27:38] for item in train] == ["train-00000", "train-00001"]


def test_two_copies_of_a_file_are_refused(tmp_path: Path) -> None:
    as_parquet(write_gsm8k(tmp_path) / "train-00000-of-00001", [{"question": "a", "answer": "1"}])
    with pytest.raises(DataError, match=r"has train more than once, as train\.jsonl too"):
        opened(tmp_path).corpus()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, r"has no file test \(\.jsonl"),
        ({"question": "Why?"}, r"test\.jsonl, line 1: no row of this data set \(KeyError\('answer'\)\)"),
        ({"question": "Why?", "answer": 3}, r"test\.jsonl, line 1: no row of this data set"),
        ("[", r"test\.jsonl, line 1"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: object, reason: str) -> None:
    write_gsm8k(tmp_path)
    (tmp_path / "test.jsonl.gz").unlink()
    if content is not None:
        (tmp_path / "test.jsonl").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(DataError, match=reason):
        opened(tmp_path).corpus()


def test_it_has_no_options_and_needs_data() -> None:
    with pytest.raises(ExperimentError, match=r"workload\.options\.steps"):
        opened(Path("data"), steps=True)
    with pytest.raises(ExperimentError, match="gsm8k needs data"):
        Gsm8k(WorkloadOptions(name="gsm8k", model="m"))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("2 + 2 = <<2+2=4>>4\n#### 4", "4"),
        ("#### 1,450.50 dollars and 3 more", "1450.50"),
        ("#### -7\n#### 8", "-7"),
        ("#### $18", "18"),
        ("so 5-3 leaves 2", "2"),
        ("the change is -$3, or -3.", "-3"),
        ("16-3", "3"),
        ("12 eggs.", "12"),
    ],
)
def test_the_final_answer(text: str, answer: str) -> None:
    assert final_answer(text) == Decimal(answer)


def test_what_has_no_number_is_never_right() -> None:
    assert final_answer("none") is final_answer("3 #### none") is None
    assert exact_answer(["none", "#### 1000", "it is 2"], ["none", "#### 1,000.0", "#### 3"]) == pytest.approx(1 / 3)
