"""`generate` and `chat` with an exported folder; the README of one."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch

from flexlora_client.errors import Exit
from flexlora_client.training.models.load_model import LoadedModel, Models
from flexlora_shared.messages.runs import RunSpec
from tests.support.command import Result, call
from tests.support.kit import spec
from tests.support.tiny_models import make_llama, make_run, make_slice


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter as `export` leaves it."""
    base = make_llama(tmp_path_factory.mktemp("llama"))
    run = make_run(base, target="q_proj")
    made = make_slice(tmp_path_factory.mktemp("adapter") / "exported", base, run)
    (made / "run.json").write_text(run.model_dump_json())
    return made


def ask(*arguments: str | Path) -> Result:
    return call(*arguments, "--max-tokens", "6", "--device", "cpu")


def test_prompts_are_arguments_lines_of_a_file_or_standard_input(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = ask("generate", folder, "Who sings?")
    assert one.code == Exit.OK, one.err
    assert one.out.strip()
    assert ask("generate", folder, "Who sings?", "--json").json["completion"].strip() == one.out.strip()
    other = ask("generate", folder, "Who swims?")
    both = ask("generate", folder, "Who sings?", "Who swims?")
    assert both.out == one.out + other.out
    (tmp_path / "prompts.txt").write_text("Who sings?\n\nWho swims?\n")
    assert ask("generate", folder, "--file", tmp_path / "prompts.txt").out == both.out
    monkeypatch.setattr("sys.stdin", io.StringIO("Who sings?\n"))
    assert ask("generate", folder).out == one.out


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_the_base_model_is_loaded_as_it_was_for_training(
    folder: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    nn = pytest.importorskip("bitsandbytes.nn")
    loading, loaded = Models.with_slice, []

    def watched(*arguments: Any, **options: Any) -> LoadedModel:
        loaded.append(loading(*arguments, **options))
        return loaded[-1]

    monkeypatch.setattr(Models, "with_slice", watched)
    monkeypatch.setattr("sys.stdin", io.StringIO("Who sings?\n"))
    written = ask(command, folder, "--quantization", "nf4", "--dtype", "bfloat16")
    assert written.code == Exit.OK, written.err
    assert loaded[0].dtype == torch.bfloat16
    assert any(isinstance(layer, nn.Linear4bit) for layer in loaded[0].model.modules())


def test_sampling_depends_on_its_seed(folder: Path) -> None:
    def sampled(seed: str) -> str:
        return ask("generate", folder, "Who?", "--temperature", "5", "--top-p", "0.9", "--seed", seed).out

    assert sampled("1") == sampled("1")
    assert sampled("1") != sampled("2")


def test_a_conversation_has_a_memory_until_it_is_too_long(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def talk(*lines: str) -> Result:
        monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
        return ask("chat", folder, "--system", "Be brief.")

    first = talk("Who sings?")
    assert first.code == Exit.OK, first.err
    repeated = talk("Who sings?", "", "Who sings?")
    assert repeated.out.startswith(first.out)
    assert repeated.out != first.out * 2  # the second answer knows of the first
    long = talk("a" * 60, "b" * 60)
    assert "without the first 2 turns" in long.err
    refused = talk("a" * 500, "Who sings?")
    assert "error: the message is too long" in refused.err
    assert refused.out == first.out


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (["x" * 500], Exit.BAD_INPUT, "the prompt has"),
        (["x", "--file", "y"], Exit.USAGE, "not both"),
        ([" "], Exit.USAGE, "no prompt"),
        (["x", "--from", "own"], Exit.USAGE, "--from chooses among"),
    ],
)
def test_what_cannot_be_asked(folder: Path, arguments: list[str], code: Exit, part: str) -> None:
    result = ask("generate", folder, *arguments)
    assert result.code == code
    assert part in " ".join(result.err.split())


def test_what_is_no_adapter_of_text(tmp_path: Path) -> None:
    nothing = ask("generate", tmp_path, "x")
    assert nothing.code == Exit.BAD_INPUT
    assert "holds no run's definition" in nothing.err
    labels = ["bird", "fish"]
    classifier = spec(model={"id": "tiny", "task_type": "SEQ_CLS", "labels": labels})
    (tmp_path / "run.json").write_text(RunSpec.model_validate(classifier, strict=False).model_dump_json())
    assert "only models of text write" in ask("generate", tmp_path, "x").err
    stranger = call("generate", "no-such-run", "x", env={"FLEXLORA_HOME": str(tmp_path / "home")})
    assert "no run's definition" in stranger.err
