"""Inspection of a file beside what calls can bring about: one that ends early on the disk, tensors of many pieces."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from flexlora_server.adapter_files import inspect_upload
from flexlora_server.adapter_files.global_adapter_numpy import NumpyGlobalAdapter
from flexlora_server.adapter_files.inspect_upload import check_upload
from flexlora_server.errors import Refusal
from flexlora_shared.layout import key_extra
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.messages.uploads import UploadCreate
from tests.support.kit import encode, spec, tensors


def test_a_file_that_ends_early_is_a_fault_of_the_storage(tmp_path: Path) -> None:
    """Whoever sent it is not to blame, and what is missing is not taken for zeros."""
    run = RunSpec.model_validate(spec())
    data = encode(tensors(run, 4))
    told = UploadCreate(rank=4, alpha=4.0, examples=1, size=len(data), sha256="0" * 64)
    path = tmp_path / "upload"
    path.write_bytes(data)
    check_upload(path, run, told, NumpyGlobalAdapter(tmp_path / "none"))
    path.write_bytes(data[:-4])
    with pytest.raises(OSError, match="shorter than its header says"):
        check_upload(path, run, told, NumpyGlobalAdapter(tmp_path / "none"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("piece", [inspect_upload.CHUNK_ELEMENTS, 4], ids=["whole", "pieces"])
def test_a_tensor_is_looked_at_to_its_end(
    piece: int, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its norm, and that it holds numbers, in pieces too: here the last of them has three of 15."""
    monkeypatch.setattr(inspect_upload, "CHUNK_ELEMENTS", piece)
    head = {"name": "score.weight", "shape": [3, 5], "init": "zeros"}
    run = RunSpec.model_validate(spec(extra=[head], norm_bound=8.0))
    path = tmp_path / "upload"

    def look(value: Tensor) -> None:
        named = {key: tensor * 1e-3 for key, tensor in tensors(run, 4).items()} | {key_extra("score.weight"): value}
        data = encode(named, dtype)
        path.write_bytes(data)
        told = UploadCreate(rank=4, alpha=4.0, examples=1, size=len(data), sha256="0" * 64)
        check_upload(path, run, told, NumpyGlobalAdapter(tmp_path / "none"))

    value = torch.full((3, 5), 2.0)  # of norm sqrt(60)
    look(value)
    value[2, 4] = 3.0  # of norm sqrt(65)
    with pytest.raises(Refusal, match=r"norm 8\.06 exceeds the run's bound 8;"):
        look(value)
    for worse in (float("nan"), float("inf")):
        value[2, 4] = worse
        with pytest.raises(Refusal, match="holds NaN or infinite values"):
            look(value)


@pytest.mark.parametrize(
    ("dtype", "bits", "whole"),
    [
        (torch.float32, 0x7FA00001, torch.int32),
        (torch.bfloat16, 0x7FA1, torch.int16),
        (torch.float16, 0x7D01, torch.int16),
    ],
)
def test_a_signalling_nan_is_refused_as_any(dtype: torch.dtype, bits: int, whole: torch.dtype, tmp_path: Path) -> None:
    """Of these NumPy warns, and warnings may be errors."""
    run = RunSpec.model_validate(spec())
    named = {key: tensor.to(dtype) for key, tensor in tensors(run, 4).items()}
    first = next(iter(named))
    named[first].view(whole)[0, 0] = bits
    data = save(named)
    path = tmp_path / "upload"
    path.write_bytes(data)
    told = UploadCreate(rank=4, alpha=4.0, examples=1, size=len(data), sha256="0" * 64)
    with pytest.raises(Refusal, match="holds NaN or infinite values"):
        check_upload(path, run, told, NumpyGlobalAdapter(tmp_path / "none"))
