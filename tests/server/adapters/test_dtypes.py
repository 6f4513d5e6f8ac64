"""Rounding without PyTorch is PyTorch's rounding: what is served is what strategies take for served."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from flexlora_server.adapters.dtypes import DTYPES, rounded
from flexlora_server.adapters.stored import as_array

TORCH = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
PAIRS = [(source, target) for source in TORCH for target in TORCH]


def same(given: torch.Tensor, name: str) -> bool:
    """Bit for bit: the sign of a zero counts."""
    ours, torchs = rounded(as_array(given), DTYPES[name]), as_array(given.to(TORCH[name]))
    return ours.dtype == torchs.dtype and ours.tobytes() == torchs.tobytes()


@pytest.mark.parametrize("name", TORCH)
@given(values=arrays(np.float64, 8, elements=st.floats(allow_nan=False)))
def test_of_float64(name: str, values: np.ndarray) -> None:
    assert same(torch.from_numpy(values), name)


@pytest.mark.parametrize("name", ["F16", "BF16"])
def test_in_two_steps_where_one_would_give_another_neighbour(name: str) -> None:
    """A hair short of the middle of two neighbours: float32 is the middle itself, which goes to the even one."""
    bits = {"F16": 10, "BF16": 7}[name]
    odd = 1 + 2.0**-bits
    beside = torch.tensor(
        [odd - 2.0 ** -(bits + 1) * (1 - 1e-12), odd + 2.0 ** -(bits + 1) * (1 - 1e-12)], dtype=torch.float64
    )
    assert same(beside, name)
    assert rounded(as_array(beside), DTYPES[name]).tolist() == [1.0, 1 + 2 * 2.0**-bits], "in one step both were odd"


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_between_all_that_is_stored(source: str, target: str) -> None:
    """Every value of 16 bits that is a number; of float32, all exponents with mantissas around every middle."""
    if source == "F32":
        high = np.arange(1 << 16, dtype=np.uint32) << 16
        low = np.array([0, 1, 0x0FFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
        every = torch.from_numpy((high[:, None] | low).reshape(-1).view(np.float32))
    else:
        every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(TORCH[source])
    assert same(every[~every.isnan()], target)


def test_what_has_the_dtype_is_not_copied() -> None:
    array = np.ones(3, np.float32)
    assert rounded(array, DTYPES["F32"]) is array
