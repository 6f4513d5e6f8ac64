"""The safetensors writer: what it writes, the library reads; whatever a tensor's shape and strides."""

from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load

from flexlora_server.adapter_files.dtypes import DTYPES
from flexlora_server.adapter_files.global_adapter_torch import as_array
from flexlora_server.adapter_files.safetensors_writer import TensorWriter

SHAPES = [(7, 1), (1, 7), (1, 1), (5,), (4, 3), (2, 3, 4)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_library_reads_it_back(dtype: torch.dtype) -> None:
    tensors = {f"t{number}": torch.randn(*shape).to(dtype) for number, shape in enumerate(SHAPES)}
    tensors["column"] = torch.randn(3, 9).to(dtype)[:1].mT  # (9, 1) with strides (1, 9): contiguous by name only
    tensors["transposed"] = torch.randn(3, 9).to(dtype).mT
    file = BytesIO()
    writer = TensorWriter(file, {key: (as_array(tensor).dtype, tuple(tensor.shape)) for key, tensor in tensors.items()})
    for key, tensor in tensors.items():
        writer.write(key, as_array(tensor))
    writer.close()
    read = load(file.getvalue())
    assert read.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert torch.equal(read[key], tensor)


def test_what_was_announced_must_be_written() -> None:
    writer = TensorWriter(BytesIO(), {"a": (DTYPES["F32"], (2, 2))})
    with pytest.raises(AssertionError, match="a was announced and not written"):
        writer.close()
    with pytest.raises(AssertionError, match="instead of a"):
        writer.write("b", np.zeros((2, 2), np.float32))


def test_what_lies_in_one_piece_is_not_copied() -> None:
    rows = torch.randn(6, 5).to(torch.bfloat16)[2:4]
    seen: list[int] = []

    class Addresses(BytesIO):
        def write(self, data: Any, /) -> int:
            seen.append(np.frombuffer(data, np.uint8).ctypes.data)
            return super().write(data)

    TensorWriter(Addresses(), {"rows": (DTYPES["BF16"], (2, 5))}).write("rows", as_array(rows))
    assert seen[-1] == rows.data_ptr()
