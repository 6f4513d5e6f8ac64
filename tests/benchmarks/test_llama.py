"""The whole model's benchmark with a model of two tiny layers."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import llama
from benchmarks.lib.svd import llama_files
from benchmarks.lib.svd.llama_files import Model, spec_of, write_round
from flexlora_server.adapter_files.round_uploads import RoundUploads


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, layers in (("8b", 32), ("70b", 80)):
        monkeypatch.setitem(llama_files.MODELS, name, Model(layers, hidden=72, mlp=96))
    monkeypatch.setattr(llama_files, "KEYS_AND_VALUES", 80)
    monkeypatch.setattr(llama_files, "POOL", 1 << 16)
    monkeypatch.setattr(llama, "RANKS", (2, 8, 8))
    monkeypatch.setattr(llama, "ROUNDS", {"8b": (3, "float32"), "70b": (4, "bfloat16")})


def test_a_round_is_aggregated_from_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    llama.main(["--layers", "2", "--json", "--folder", str(tmp_path)])
    (found,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert (found["participants"], found["modules"], found["total_rank"], found["dtype"]) == (3, 14, 18, "float32")
    assert sum(found["routes"].values()) == 14
    assert found["seconds"] > 0
    assert not list(tmp_path.iterdir())


def test_the_larger_model_has_its_own_participants(capsys: pytest.CaptureFixture[str]) -> None:
    llama.main(["--model", "70b", "--layers", "1", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (found["model"], found["participants"], found["dtype"]) == ("70b", 4, "bfloat16")
    assert found["target"] is None  # of one layer


def test_one_layer_with_more_participants(capsys: pytest.CaptureFixture[str]) -> None:
    llama.main(["--participants", "3", "6"])
    few, many = capsys.readouterr().out.splitlines()
    assert few.split()[:4] == ["3", "participants,", "7", "modules,"]
    assert many.split()[:2] == ["6", "participants,"]


def test_every_upload_and_module_is_different(tmp_path: Path) -> None:
    work = write_round(
        spec_of(replace(llama_files.MODELS["8b"], layers=1), [2, 8, 8], "float32", 1.0), [2, 8, 8], tmp_path, threads=1
    )
    uploads = RoundUploads(work.spec, work.inputs)
    seen = [update.B[:40, :2] for module in work.spec.modules for update in uploads.updates(module.name)]
    assert not any(torch.equal(one, other) for i, one in enumerate(seen) for other in seen[:i])
