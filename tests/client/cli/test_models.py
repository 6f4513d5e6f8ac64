"""From a model's configuration to a trained adapter with nothing but the command line; and what `describe` shows."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from flexlora_client.errors import Exit
from flexlora_client.training.data.examples import Labelled
from flexlora_server.lifecycle.validation import check_spec
from flexlora_shared.messages.runs import RunSpec
from tests.support.command import call
from tests.support.data_files import load
from tests.support.kit import OPERATOR_KEY, Served
from tests.support.tiny_models import make_llama


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama's directory."""
    return make_llama(tmp_path_factory.mktemp("llama"))


def test_a_described_model_is_fine_tuned_and_evaluated(site: Served, llama: Path, tmp_path: Path) -> None:
    operator = {"FLEXLORA_URL": site.url, "FLEXLORA_OPERATOR_KEY": OPERATOR_KEY}
    options = ["--target", "q_proj", "--target", "v_proj", "--rank", "2", "--rank", "4", "--rounds", "2", "--json"]
    described = call("describe", llama, "--name", "real", *options)
    assert described.code == Exit.OK
    spec = RunSpec.model_validate_json(described.out)
    assert {module.name.rpartition(".")[2] for module in spec.modules} == {"q_proj", "v_proj"}
    (tmp_path / "run.json").write_text(described.out)
    assert call("runs", "create", tmp_path / "run.json", env=operator).code == Exit.OK
    assert call("runs", "start", "real", env=operator).code == Exit.OK
    home = {"FLEXLORA_HOME": str(tmp_path / "home")}
    token = call("tokens", "create", env=operator).out.strip()
    assert call("enroll", site.url, "--token", token, env=home).code == Exit.OK
    data, heldout = tmp_path / "data.jsonl", tmp_path / "heldout.csv"
    data.write_text("".join(json.dumps({"prompt": f"Count {n}: ", "completion": f"{n + 1}"}) + "\n" for n in range(6)))
    heldout.write_text("prompt,completion\nCount 9: ,10\n")
    more = [
        "--data",
        str(data),
        "--heldout",
        str(heldout),
        "--answers",
        "1",
        "--evaluation-share",
        "1000",
        "--device",
        "cpu",
        "--threads",
        "1",
        "--json",
    ]
    result = call("run", "real", "--rank", "4", *more, env=home)
    assert result.code == Exit.OK, result.err
    events = [json.loads(line) for line in result.out.splitlines()]
    evaluated = [(e["round"], e["metrics"]) for e in events if e["event"] == "evaluated"]
    assert [number for number, _ in evaluated] == [0, 1, 2]
    assert all({"loss", "exact_match", "rouge_l"} <= metrics.keys() for _, metrics in evaluated)
    trained = next(event["metrics"] for event in events if event["event"] == "trained")
    assert {"train_loss", "heldout_loss"} <= trained.keys()
    evaluations = {e["metric"]: e["value"] for e in site.round("real", 2)["summary"]["evaluations"]}
    assert evaluations["loss"] == pytest.approx(evaluated[2][1]["loss"])
    again = call("run", "real", "--rank", "4", *more, env=home)
    assert [json.loads(line)["event"] for line in again.out.splitlines()] == ["data", "downloaded", "completed"]
    other = {"FLEXLORA_HOME": str(tmp_path / "other")}
    token = call("tokens", "create", env=operator).out.strip()
    assert call("enroll", site.url, "--token", token, env=other).code == Exit.OK
    unseen = [
        "--role",
        "evaluator",
        "--rank",
        "2",
        "--data",
        str(heldout),
        "--metric",
        "tests.support.metrics:same_length",
    ]
    measured = call("run", "real", *unseen, "--device", "cpu", "--json", env=other)
    assert [json.loads(line)["event"] for line in measured.out.splitlines()][-2:] == ["evaluated", "completed"]
    told = site.round("real", 2)["summary"]["evaluations"]
    assert {e["metric"] for e in told if e.get("role") == "evaluator"} >= {"loss", "same_length"}
    assert "(evaluators)" in call("rounds", "real", env=operator).out
    assert "(1 evaluators)" in call("rounds", "real", "2", env=operator).out
    own = call("export", "real", "--from", "own", "-o", tmp_path / "own", "--json", env=home)
    assert (own.json["own"], own.json["rank"]) == (True, 4)
    best = min((event for event in events if event["event"] == "trained"), key=lambda e: e["metrics"]["heldout_loss"])
    assert own.json["round"] == best["round"]
    card = (tmp_path / "own" / "README.md").read_text()
    assert f"| loss | {best['metrics']['heldout_loss']:.4g} |" in card
    assert "trained by one participant" in card
    written = call("generate", tmp_path / "own", "Count 4: ", "--max-tokens", "8", "--device", "cpu", env=home)
    assert written.code == Exit.OK, written.err
    of_run = ("generate", "real", "Count 4: ", "--from", "own", "--max-tokens", "8", "--device", "cpu", "--json")
    assert call(*of_run, env=home).json["completion"] in written.out


@pytest.mark.slow
def test_describe_warns_of_ranks_that_nothing_serves(tmp_path: Path) -> None:
    LlamaConfig(
        vocab_size=64, hidden_size=1024, intermediate_size=1024, num_hidden_layers=1, num_attention_heads=2
    ).save_pretrained(tmp_path)
    described = call("describe", tmp_path, "--target", "up_proj", "--rank", "8", "--rank", "600", "--json")
    assert described.code == Exit.OK, described.err
    assert "warning: rank 600 is above 512" in described.err


def test_describe_shows_the_layers(llama: Path) -> None:
    shown = call("describe", llama, "--target", "mlp.up_proj")
    assert shown.code == Exit.OK
    assert [line.split() for line in shown.out.splitlines()[1:]] == [
        ["model.layers.0.mlp.up_proj", "48", "32"],
        ["model.layers.1.mlp.up_proj", "48", "32"],
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("labels.txt", "yes\nno\n\n"),
        ("labels.json", '["yes", "no"]'),
        ("data.csv", "text,label\na,yes\nb,no\nc,yes\n"),
        ("data.jsonl", '{"text": "a", "category": "yes"}\n{"text": "b", "category": "no"}\n'),
        ("several.jsonl", '{"text": "a", "labels": ["yes", "no"]}\n{"text": "b", "labels": []}\n'),
        ("words.jsonl", '{"tokens": ["a", "b"], "ner_tags": ["yes", "no"]}\n'),
    ],
)
def test_labels_come_from_lists_and_from_data(llama: Path, tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    described = call("describe", llama, "--task-type", "SEQ_CLS", "--labels-from", tmp_path / name, "--json")
    spec = RunSpec.model_validate_json(described.out)
    assert sorted(spec.model.labels) == ["no", "yes"]
    assert [(tensor.name, tensor.shape) for tensor in spec.extra] == [("score.weight", (2, 32))]
    assert "score.weight" in call("describe", llama, "--task-type", "SEQ_CLS", "--labels-from", tmp_path / name).out


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("labels.txt", "", "no list of labels"),
        ("labels.txt", "yes\nyes\n", "twice"),
        ("labels.json", "{", "cannot read labels"),
        ("labels.json", "[1, 2]", "no list of labels"),
        ("labels.json", "7", "no list of labels"),
        ("data.csv", "text\na\n", "no list of labels"),
        ("data.doc", "", "ending"),
    ],
)
def test_labels_that_are_none(llama: Path, tmp_path: Path, name: str, content: str, part: str) -> None:
    (tmp_path / name).write_text(content)
    result = call("describe", llama, "--task-type", "SEQ_CLS", "--labels-from", tmp_path / name)
    assert result.code == Exit.BAD_INPUT
    assert part in result.err


def test_models_and_options_that_cannot_be(llama: Path, tmp_path: Path) -> None:
    assert "names no linear layer" in call("describe", llama, "--target", "typo").err
    assert call("describe", llama, "--task-type", "SEQ_CLS").code == Exit.BAD_INPUT
    assert call("describe", llama, "--name", "Not A Name").code == Exit.USAGE
    assert call("describe", llama, "--task-type", "OTHER").code == Exit.USAGE
    missing = call("describe", tmp_path / "none")
    assert missing.code == Exit.BAD_INPUT
    assert "configuration" in missing.err
    absent = call("describe", llama, "--task-type", "SEQ_CLS", "--labels-from", tmp_path / "none.txt")
    assert absent.code == Exit.BAD_INPUT


def test_labels_that_are_numbers_keep_their_order(llama: Path, tmp_path: Path) -> None:
    """Of `label` and `category` the first counts, as when the file is loaded; 10 comes after 2."""
    rows = [{"text": "a", "label": label, "category": "ignored"} for label in (10, 2, 0, 1)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    asked = (
        "describe",
        llama,
        "--task-type",
        "SEQ_CLS",
        "--labels-from",
        tmp_path / "data.jsonl",
        "--min-clients",
        "3",
    )
    spec = RunSpec.model_validate_json(call(*asked, "--json").out)
    assert spec.model.labels == ("0", "1", "2", "10")
    assert (spec.min_clients, spec.min_updates) == (3, 3)
    examples = [example for example in load(tmp_path / "data.jsonl", spec.model) if isinstance(example, Labelled)]
    assert [example.label for example in examples] == [3, 2, 0, 1]


def test_labels_are_found_where_the_loader_finds_them(llama: Path, tmp_path: Path) -> None:
    """A null is no label; a number is the same class in every format."""
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "a", "label": null, "category": 20}\n{"text": "b", "label": 3}\n')
    asked = ("describe", llama, "--task-type", "SEQ_CLS", "--labels-from", path, "--json")
    spec = RunSpec.model_validate_json(call(*asked).out)
    assert spec.model.labels == ("3", "20")
    (tmp_path / "data.csv").write_text("text,label\na,20\nb,3\n")
    assert load(path, spec.model) == load(tmp_path / "data.csv", spec.model) == (Labelled("a", 1), Labelled("b", 0))
    path.write_text('{"text": "a", "label": true}\n')
    assert "neither a text nor a whole number" in call(*asked).err


def test_another_base_model_is_refused_before_it_declares(site: Served, llama: Path, tmp_path: Path) -> None:
    operator = {"FLEXLORA_URL": site.url, "FLEXLORA_OPERATOR_KEY": OPERATOR_KEY}
    (tmp_path / "run.json").write_text(call("describe", llama, "--name", "pinned", "--json").out)
    assert call("runs", "create", tmp_path / "run.json", env=operator).code == Exit.OK
    home = {"FLEXLORA_HOME": str(tmp_path / "home")}
    token = call("tokens", "create", env=operator).out.strip()
    assert call("enroll", site.url, "--token", token, env=home).code == Exit.OK
    other = Path(shutil.copytree(llama, tmp_path / "other"))
    torch.manual_seed(1)
    LlamaForCausalLM(LlamaConfig.from_pretrained(llama)).save_pretrained(other)
    rows = [json.dumps({"prompt": f"Count {n}", "completion": str(n)}) for n in range(20)]
    (tmp_path / "data.jsonl").write_text("\n".join(rows))
    options: list[str | Path] = ["--rank", "4", "--data", tmp_path / "data.jsonl", "--device", "cpu"]
    result = call("run", "pinned", *options, "--model", other, env=home)
    assert result.code == Exit.BAD_INPUT
    assert "the weights in" in result.err
    assert "not the run's" in result.err
    assert site.operator.expect(200, "GET", "/v1/runs/pinned")["status"]["participants"] == 0


def test_describe_says_what_it_leaves_out_and_writes_what_can_be_created(llama: Path, tmp_path: Path) -> None:
    described = call("describe", llama, "--rank", "20", "--rank", "24", "--exclude", "q_proj", "--json")
    assert described.code == Exit.OK
    spec = RunSpec.model_validate_json(described.out)
    check_spec(spec)
    assert "k_proj" in described.err
    assert "they are smaller than rank 20" in described.err
    assert not {"k_proj", "v_proj", "q_proj"} & {module.name.rpartition(".")[2] for module in spec.modules}
    too_large = call("describe", llama, "--rank", "2", "--rank", "64")
    assert too_large.code == Exit.BAD_INPUT
    assert "rank 64 exceeds what any module can hold" in too_large.err
    assert call("describe", llama, "--exclude", "typo").code == Exit.BAD_INPUT


def test_the_kind_of_problem_and_the_prompts_are_in_the_definition(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("calm\nangry\n")
    asked: list[str | Path] = ["--task-type", "SEQ_CLS", "--labels-from", tmp_path / "labels.txt"]
    asked += ["--problem-type", "multi-label"]
    spec = RunSpec.model_validate_json(call("describe", llama, *asked, "--json").out)
    assert (spec.model.problem_type, spec.model.labels) == ("multi-label", ("calm", "angry"))
    chosen = RunSpec.model_validate_json(call("describe", llama, "--prompt-format", "alpaca", "--json").out)
    assert chosen.training.prompt_format == "alpaca"
    refused = call("describe", llama, "--problem-type", "regression", "--json")
    assert refused.code == Exit.BAD_INPUT
    assert "problem_type regression is for SEQ_CLS" in refused.err


def test_the_folders_of_images_are_the_labels(llama: Path, tmp_path: Path) -> None:
    for name in ("fish", "bird"):
        (tmp_path / "images" / name).mkdir(parents=True)
    (tmp_path / "images" / "notes.txt").write_text("no label")
    asked = ("describe", llama, "--task-type", "TOKEN_CLS", "--labels-from", tmp_path / "images", "--json")
    assert RunSpec.model_validate_json(call(*asked).out).model.labels == ("bird", "fish")
