"""The whole model's benchmark with a model of two tiny layers."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import llama
from benchmarks.lib.svd import llama_files
from benchmarks.lib.svd.llama_files import spec_of, write_round
from flexlora_server.adapter_files.round_uploads import RoundUploads

LAYER = {"self_attn.q_proj": (64, 72), "mlp.up_proj": (96, 72)}


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_files, "LAYER", LAYER)
    monkeypatch.setattr(llama_files, "POOL", 1 << 16)
    monkeypatch.setattr(llama, "RANKS", (2, 8, 8))


def test_a_round_is_aggregated_from_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    llama.main(["--layers", "2", "--json", "--folder", str(tmp_path)])
    (found,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert (found["participants"], found["modules"], found["total_rank"], found["dtype"]) == (3, 4, 18, "float32")
    assert sum(found["routes"].values()) == 4
    assert found["seconds"] > 0
    assert not list(tmp_path.iterdir())


def test_one_layer_with_more_participants(capsys: pytest.CaptureFixture[str]) -> None:
    llama.main(["--participants", "3", "6"])
    few, many = capsys.readouterr().out.splitlines()
    assert few.split()[:4] == ["3", "participants,", "2", "modules,"]
    assert many.split()[:2] == ["6", "participants,"]


def test_every_upload_and_module_is_different(tmp_path: Path) -> None:
    work = write_round(spec_of(1, [2, 8, 8], "float32", 1.0), [2, 8, 8], tmp_path, threads=1)
    uploads = RoundUploads(work.spec, work.inputs)
    seen = [update.B[:40, :2] for name in LAYER for update in uploads.updates(f"model.layers.0.{name}")]
    assert not any(torch.equal(one, other) for i, one in enumerate(seen) for other in seen[:i])
