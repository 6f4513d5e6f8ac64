"""Rounding without PyTorch is PyTorch's rounding: what is served is what strategies take for served."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from flexlora_server.adapter_files.dtypes import DTYPES, to_dtype
from flexlora_server.adapter_files.global_adapter_torch import TORCH_DTYPES, as_array


def same(given: torch.Tensor, name: str) -> bool:
    """Bit for bit: the sign of a zero counts."""
    ours, torchs = to_dtype(as_array(given), DTYPES[name]), as_array(given.to(TORCH_DTYPES[name]))
    return ours.dtype == torchs.dtype and ours.tobytes() == torchs.tobytes()


@pytest.mark.parametrize("name", TORCH_DTYPES)
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
    assert to_dtype(as_array(beside), DTYPES[name]).tolist() == [1.0, 1 + 2 * 2.0**-bits], "in one step both were odd"


@pytest.mark.parametrize("target", ["F16", "BF16"])
@pytest.mark.parametrize("source", [np.float32, np.float64])
def test_around_every_middle_of_two_neighbours(source: type[np.floating[Any]], target: str) -> None:
    """Subnormal ones too, and the last one, beyond which is infinity."""
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(TORCH_DTYPES[target]).double().numpy()
    finite = np.unique(every[np.isfinite(every)])
    past = 2 * finite[-1] - finite[-2]
    middles = ((np.append(finite, past) + np.append(-past, finite)) / 2).astype(source)
    for values in (middles, np.nextafter(middles, source(-np.inf)), np.nextafter(middles, source(np.inf))):
        assert same(torch.from_numpy(values), target)


@pytest.mark.parametrize("source", ["F16", "BF16"])
@pytest.mark.parametrize("target", TORCH_DTYPES)
def test_of_every_number_of_16_bits(source: str, target: str) -> None:
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(TORCH_DTYPES[source])
    assert same(every[~every.isnan()], target)


def test_what_has_the_dtype_is_not_copied() -> None:
    array = np.ones(3, np.float32)
    assert to_dtype(array, DTYPES["F32"]) is array
