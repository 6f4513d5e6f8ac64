"""`data preview`: what the model sees of a file's examples, without its weights."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from flexlora_client.errors import Exit
from flexlora_shared.messages.runs import ModelSpec, ModuleSpec, RunSpec, TaskType, TrainingSpec
from tests.support.command import call
from tests.support.kit import OPERATOR_KEY, Served
from tests.support.tiny_models import LABELS, make_llama


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama's directory without its weights."""
    directory = make_llama(tmp_path_factory.mktemp("llama"))
    (directory / "model.safetensors").unlink()
    return directory


def define(base: Path, task: TaskType = "CAUSAL_LM", **training: object) -> RunSpec:
    layer = ModuleSpec(name="model.layers.0.self_attn.q_proj", out_features=32, in_features=32)
    model = ModelSpec(id=str(base), task_type=task, labels=LABELS if task == "SEQ_CLS" else ())
    spec = TrainingSpec.model_validate({"max_length": 16} | training)
    return RunSpec(name="test", model=model, modules=(layer,), ranks=(2,), rounds=1, training=spec)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A file of three examples, the last of which is too long."""
    path = tmp_path / "rows.jsonl"
    pairs = [("ab", "cd"), ("zz", "yy"), ("q" * 30, "end")]
    path.write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in pairs))
    return path


def test_what_is_learned_stands_in_brackets_and_what_is_lost_is_counted(base: Path, tmp_path: Path, rows: Path) -> None:
    (tmp_path / "run.json").write_text(define(base).model_dump_json())
    shown = call("data", "preview", tmp_path / "run.json", "--data", rows, "-n", "1")
    assert shown.code == Exit.OK, shown.err
    assert shown.out.splitlines() == [
        "<s>ab[[cd</s>]]",
        "-- example 1: 6 tokens, 3 to learn",
        "",
        "3 examples, 28 tokens, 10 of them to learn",
        "length in tokens: least 6, median 6, 95 % up to 35, most 35; room for 16",
        "cut: 1 examples (33.3%) lose 19 tokens, 0 whole turns among them",
    ]


def test_at_a_terminal_what_is_not_learned_is_dimmed(base: Path, tmp_path: Path, rows: Path) -> None:
    (tmp_path / "run.json").write_text(define(base).model_dump_json())
    shown = call("data", "preview", tmp_path / "run.json", "--data", rows, "-n", "1", env={"FORCE_COLOR": "1"})
    assert shown.out.startswith("\x1b[2m<s>ab\x1b[0m\x1b[1mcd</s>\x1b[0m\n")


def test_as_json_of_a_run_on_the_coordinator(site: Served, base: Path, tmp_path: Path, rows: Path) -> None:
    operator = {"FLEXLORA_URL": site.url, "FLEXLORA_OPERATOR_KEY": OPERATOR_KEY}
    spec = define(Path("some/model"))  # stood in for by --model
    (tmp_path / "run.json").write_text(spec.model_dump_json())
    assert call("runs", "create", tmp_path / "run.json", env=operator).code == Exit.OK
    shown = call("data", "preview", "test", "--data", rows, "--model", base, "--json", env=operator)
    assert shown.code == Exit.OK, shown.err
    ids = AutoTokenizer.from_pretrained(base)("abcd").input_ids
    made = shown.json
    assert (made["run"], made["max_length"]) == ("test", 16)
    assert made["counts"]["lengths"] == {"least": 6, "median": 6, "p95": 35, "most": 35}
    assert made["counts"]["cut"] == 1
    first = made["examples"][0]["rows"][0]
    assert first["ids"] == [*ids, 1]
    assert first["targets"] == [-100] * 3 + [*ids[3:], 1]
    assert first["pieces"] == [{"text": "<s>ab", "learned": False}, {"text": "cd</s>", "learned": True}]
    assert made["examples"][2]["cut"] == 19


def test_labels_and_what_is_left_out(base: Path, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(define(base, "SEQ_CLS").model_dump_json())
    (tmp_path / "rows.csv").write_text("text,label\nit swims,fish\n")
    shown = call("data", "preview", tmp_path / "run.json", "--data", tmp_path / "rows.csv")
    assert shown.out.splitlines()[0] == "<s>it swims [[fish]]"
    (tmp_path / "run.json").write_text(define(base).model_dump_json())
    turns = [
        {"role": "system", "content": "s" * 90},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
    ]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    shown = call("data", "preview", tmp_path / "run.json", "--data", tmp_path / "rows.jsonl")
    assert shown.code == Exit.OK, shown.err
    assert "left out: 1 examples (100.0%); the first: what stands around a question" in shown.out


def test_files_are_read_as_run_reads_them(base: Path, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(define(base, "SEQ_CLS").model_dump_json())
    (tmp_path / "one.csv").write_text("body;kind\nit swims;FISH\n;FISH\n")
    (tmp_path / "two.csv").write_bytes("body;kind\n\u0440\u044b\u0431\u0430;FISH\n".encode("cp1251"))
    given: list[str | Path] = [
        "--data",
        tmp_path / "one.csv",
        "--data",
        tmp_path / "two.csv",
        "--encoding",
        "cp1251",
        "--separator",
        ";",
    ]
    named = ["--column", "text=body", "--column", "label=kind", "--label", "FISH=fish", "--bad-rows", "skip"]
    shown = call("data", "preview", tmp_path / "run.json", *given, *named)
    assert shown.code == Exit.OK, shown.err
    learned = [line for line in shown.out.splitlines() if line.endswith("[[fish]]")]
    assert [line.startswith("<s>it swims") for line in learned] == [True, False]
    assert "bad rows, skipped: 1 of 3" in shown.out
    assert "one.csv, line 3" in shown.out
    as_json = call("data", "preview", tmp_path / "run.json", *given, *named, "--json").json
    assert (as_json["counts"]["examples"], as_json["notes"][0]) == (2, "bad rows, skipped: 1 of 3")


def test_a_file_that_is_no_definition(tmp_path: Path, rows: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    shown = call("data", "preview", tmp_path / "run.json", "--data", rows)
    assert shown.code == Exit.BAD_INPUT
    assert "is no run's definition: name: Field required" in shown.err
