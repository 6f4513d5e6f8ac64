"""Inspection of a file beside what calls can bring about: one that ends early on the disk."""

from pathlib import Path

import pytest

from flexlora_server.adapters.inspection import inspect
from flexlora_server.adapters.stored import StoredAdapter
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.messages.uploads import UploadCreate
from tests.kit import encode, spec, tensors


def test_a_file_that_ends_early_is_a_fault_of_the_storage(tmp_path: Path) -> None:
    """Whoever sent it is not to blame, and what is missing is not taken for zeros."""
    run = RunSpec.model_validate(spec())
    data = encode(tensors(run, 4))
    told = UploadCreate(rank=4, alpha=4.0, examples=1, size=len(data), sha256="0" * 64)
    path = tmp_path / "upload"
    path.write_bytes(data)
    inspect(path, run, told, StoredAdapter(tmp_path / "none"))
    path.write_bytes(data[:-4])
    with pytest.raises(OSError, match="shorter than its header says"):
        inspect(path, run, told, StoredAdapter(tmp_path / "none"))
