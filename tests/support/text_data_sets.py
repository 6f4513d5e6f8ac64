"""Tiny stand-ins for the text workloads' data sets: a few rows each, in the files and fields that the authors publish."""

import gzip
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ARC = {"stem": "Which of these sings?", "choices": [{"text": "a bird", "label": "A"}, {"text": "a fish", "label": "B"}]}
# the files of each set of commonsense questions, with a row as its authors write it, and lines of the answers beside it
COMMONSENSE: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "boolq": (
        "train.jsonl",
        "dev.jsonl",
        {"question": "do fish swim", "title": "Fish", "answer": True, "passage": "Fish swim."},
        "",
    ),
    "piqa": ("train.jsonl", "valid.jsonl", {"goal": "Cut it", "sol1": "Use a knife.", "sol2": "Use a cloud."}, "0"),
    "siqa": (
        "train.jsonl",
        "dev.jsonl",
        {"context": "Ada fell.", "question": "How is she?", "answerA": "glad", "answerB": "hurt", "answerC": "tall"},
        "2",
    ),
    "hellaswag": (
        "hellaswag_train.jsonl",
        "hellaswag_val.jsonl",
        {
            "ind": 4,
            "activity_label": "Singing",
            "ctx_a": "A bird sits [title] Song [step] It sings.",
            "ctx_b": "then it",
            "endings": ["flies  away.", "is a car.", "reads.", "[header] melts."],
            "label": 0,
        },
        "",
    ),
    "winogrande": (
        "train_xl.jsonl",
        "dev.jsonl",
        {
            "qID": "1",
            "sentence": "The cup fell on the floor as _ was slippery.",
            "option1": "the cup",
            "option2": "the floor",
            "answer": "1",
        },
        "",
    ),
    "arc-e": (
        "ARC-Easy-Train.jsonl",
        "ARC-Easy-Test.jsonl",
        {"id": "x", "question": ARC, "answerKey": "A"},
        "",
    ),
    "arc-c": (
        "ARC-Challenge-Train.jsonl",
        "ARC-Challenge-Test.jsonl",
        {"id": "x", "question": ARC, "answerKey": "B"},
        "",
    ),
    "obqa": ("train.jsonl", "test.jsonl", {"id": "7", "question": ARC, "answerKey": "A"}, ""),
}


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """JSONL, packed where the name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(f"{json.dumps(row)}\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    return path


def write_gsm8k(folder: Path, count: int = 8) -> Path:
    """Sums."""
    rows = [{"question": f"What is {n} + {n}?", "answer": f"{n} + {n} = {2 * n}\n#### {2 * n}"} for n in range(count)]
    write_lines(folder / "train.jsonl", rows)
    write_lines(folder / "test.jsonl.gz", rows[:2])
    return folder


def write_sni(folder: Path, seen: int = 2, unseen: int = 1, instances: int = 4) -> Path:
    """Tasks that ask to say a number, as the repository lays them out."""
    names = [f"task{n:03}_say_{n}" for n in range(seen + unseen)]
    for n, name in enumerate(names):
        task = {
            "Contributors": ["nobody"],
            "Categories": ["Copying" if n % 2 else "Counting"],
            "Definition": [f"Say the number {n} in words."],
            "Positive Examples": [{"input": "now", "output": f"{n}", "explanation": "It is the number."}],
            "Negative Examples": [],
            "Instances": [
                {"id": f"{name}-{i}", "input": f"input {i}", "output": [f"{n}", f"number {n}", f"{n}"]}
                for i in range(instances)
            ],
        }
        path = folder / "tasks" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(task, indent=4))
    split = folder / "splits" / "default"
    split.mkdir(parents=True)
    (split / "train_tasks.txt").write_text("".join(f"{name}\n" for name in names[:seen]))
    (split / "test_tasks.txt").write_text("".join(f"{name}\n" for name in names[seen:]))
    return folder


def write_commonsense(folder: Path, count: int = 2) -> Path:
    """Each set's files with its row `count` times."""
    for name, (train, test, row, answer) in COMMONSENSE.items():
        for file in (train, test):
            path = write_lines(folder / name / file, [row] * count)
            if answer:
                path.with_name(f"{path.stem}-labels.lst").write_text(f"{answer}\n" * count)
    return folder


def write_squad(folder: Path, documents: int = 2) -> Path:
    """SQuAD 2's JSON: in each document a question with two answers and one without."""

    def document(n: int) -> dict[str, Any]:
        asked = {"id": "1", "question": "Who sings?", "is_impossible": False}
        answers = [{"text": text, "answer_start": 4} for text in ("bird", "The bird", "bird")]
        none = {"id": "2", "question": "Who swims?", "is_impossible": True, "answers": [], "plausible_answers": answers}
        paragraph = {"context": f"The bird {n} sings.", "qas": [{**asked, "answers": answers}, none]}
        return {"title": f"Document {n}", "paragraphs": [paragraph]}

    folder.mkdir(parents=True, exist_ok=True)
    for name in ("train-v2.0", "dev-v2.0"):
        content = {"version": "v2.0", "data": [document(n) for n in range(documents)]}
        (folder / f"{name}.json").write_text(json.dumps(content, indent=1))
    return folder
