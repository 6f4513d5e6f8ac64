"""Slices cut from a stored global update: the bytes they must have, whatever its age, dtype, ranks and scaling."""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flexlora_server.adapter_files import slicing
from flexlora_server.adapter_files.dtypes import DTYPES, slice_dtype
from flexlora_server.adapter_files.global_adapter_torch import (
    GlobalAdapterWriter,
    TorchGlobalAdapter,
    as_array,
    served_dtype,
)
from flexlora_server.adapter_files.safetensors_writer import TensorWriter
from flexlora_server.adapter_files.slicing import served_scaling, write_slice
from flexlora_server.aggregation.factors import GlobalFactors, rounded, slice_factors
from flexlora_server.errors import AggregationError
from flexlora_shared.layout import adapter_shapes, key_A, key_B, key_extra
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.ranks import module_ranks
from tests.support.kit import spec

NAMES = ["float32", "float16", "bfloat16"]
SCALINGS: list[dict[str, Any]] = [
    {"alpha": 16.0},
    {"alpha_per_rank": 1.4},
    {"alpha_per_rank": 0.7, "use_rslora": True},
]
PATTERNS = [{}, {"up_proj": 8}, {"layers.0.q_proj": 1, "up_proj": 2}]
HEAD = {"name": "score.weight", "shape": [3, 5], "init": "zeros"}


def run_of(dtype: str, **changes: Any) -> RunSpec:
    return RunSpec.model_validate(spec(**{"ranks": [1, 2, 4, 8], "upload_dtype": dtype, "extra": [HEAD], **changes}))


def published(run: RunSpec) -> dict[str, GlobalFactors]:
    """By module; values of every size, and a column of zeros."""
    generator, made = torch.Generator().manual_seed(0), {}
    for module in run.modules:
        B = torch.randn(module.out_features, run.largest_rank, generator=generator)
        B = B * 10.0 ** torch.linspace(2, -9, run.largest_rank)
        B[:, 2] = 0
        A = torch.randn(run.largest_rank, module.in_features, generator=generator)
        made[module.name] = GlobalFactors(B, rounded(A, served_dtype(run)))
    return made


def head() -> Tensor:
    return torch.linspace(-1, 1, 15).reshape(3, 5)


def store(path: Path, run: RunSpec, factors: dict[str, GlobalFactors]) -> Path:
    with path.open("wb") as file:
        writer = GlobalAdapterWriter(file, run)
        for module in run.modules:
            writer.module(module.name, factors[module.name])
        writer.extra("score.weight", head())
        writer.close()
    return path


def store_as_once(path: Path, run: RunSpec, factors: dict[str, GlobalFactors]) -> Path:
    """A file from before A was kept in the served dtype: everything in float32."""
    tensors: dict[str, Tensor] = {}
    for name, both in factors.items():
        tensors |= {f"{name}.Bt": both.B.mT.contiguous(), f"{name}.A": both.A}
    tensors["extra:score.weight"] = head()
    with path.open("wb") as file:
        writer = TensorWriter(file, {key: (DTYPES["F32"], tuple(tensor.shape)) for key, tensor in tensors.items()})
        for key, tensor in tensors.items():
            writer.write(key, as_array(tensor))
    return path


def wanted(run: RunSpec, factors: dict[str, GlobalFactors], rank: int, pattern: dict[str, int]) -> bytes:
    """The slice's file by the definition: whole tensors, A rounded again, `B / scaling` in float64, then rounded."""
    dtype, file = served_dtype(run), BytesIO()
    ranks = module_ranks(run.modules, rank, pattern)
    shapes = adapter_shapes(run.modules, run.extra, ranks)
    writer = TensorWriter(file, {key: (DTYPES[slice_dtype(run)], shape) for key, shape in shapes.items()})
    for name, both in factors.items():
        writer.write(key_A(name), as_array(both.A[: ranks[name]].to(dtype)))
        B = both.B[:, : ranks[name]].double() / served_scaling(run, ranks[name])
        _, served = slice_factors(both, ranks[name], served_scaling(run, ranks[name]), dtype)
        assert torch.equal(served, B.to(dtype)), "what strategies take for served"
        writer.write(key_B(name), as_array(served))
    writer.write(key_extra("score.weight"), as_array(head().to(dtype)))
    writer.close()
    return file.getvalue()


def sliced(path: Path, run: RunSpec, rank: int, pattern: dict[str, int]) -> bytes:
    file = BytesIO()
    write_slice(path, run, rank, pattern, file)
    return file.getvalue()


def tensors_of(data: bytes) -> dict[str, tuple[str, bytes]]:
    """A safetensors file's dtypes and raw bytes, by key."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__")
    places = {key: [start + offset for offset in told["data_offsets"]] for key, told in header.items()}
    return {key: (header[key]["dtype"], data[first:last]) for key, (first, last) in places.items()}


@pytest.mark.parametrize("piece", [slicing.CHUNK_ELEMENTS, 24], ids=["whole", "pieces"])
@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
@pytest.mark.parametrize("dtype", NAMES)
def test_a_slice_has_the_bytes_of_its_definition(
    dtype: str, scaling: dict[str, Any], piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For every rank and pattern, from a file of today and from one of before; 24 numbers a piece leave a remainder."""
    monkeypatch.setattr(slicing, "CHUNK_ELEMENTS", piece)
    run = run_of(dtype, scaling=scaling)
    factors = published(run)
    files = store(tmp_path / "new", run, factors), store_as_once(tmp_path / "old", run, factors)
    for rank in run.ranks:
        for pattern in PATTERNS:
            expected = wanted(run, factors, rank, pattern)
            assert all(sliced(path, run, rank, pattern) == expected for path in files), (rank, pattern)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_slice_of_tensors_that_are_not_aligned(dtype: str, tmp_path: Path) -> None:
    """An odd number of 16-bit values before one of 32 bits."""
    modules = [{"name": name, "out_features": 5, "in_features": 7} for name in ("first", "second")]
    run = run_of(dtype, ranks=[1, 3], modules=modules)
    factors = published(run)
    path = store(tmp_path / "stored", run, factors)
    for rank in run.ranks:
        assert sliced(path, run, rank, {}) == wanted(run, factors, rank, {})


@pytest.mark.parametrize("dtype", NAMES)
def test_lora_A_is_the_first_bytes_of_the_stored_A(dtype: str, tmp_path: Path) -> None:
    run = run_of(dtype)
    path = store(tmp_path / "stored", run, published(run))
    kept = tensors_of(path.read_bytes())
    for rank in run.ranks:
        served = tensors_of(sliced(path, run, rank, {}))
        for module in run.modules:
            (stored_dtype, stored), (slice_dtype, prefix) = kept[f"{module.name}.A"], served[key_A(module.name)]
            assert stored_dtype == slice_dtype
            assert prefix
            assert stored.startswith(prefix)


@pytest.mark.parametrize("dtype", NAMES)
def test_the_stored_factors_are_read_as_they_were_written(dtype: str, tmp_path: Path) -> None:
    """In float32, every rank of them, from both kinds of file."""
    run = run_of(dtype)
    factors = published(run)
    for path in (store(tmp_path / "new", run, factors), store_as_once(tmp_path / "old", run, factors)):
        adapter = TorchGlobalAdapter(path)
        for name, both in factors.items():
            for rank in (None, 1, 4, 8):
                read = adapter.factors(name, rank)
                assert (read.A.dtype, read.B.dtype) == (torch.float32, torch.float32)
                assert torch.equal(read.A, both.A[:rank])
                assert torch.equal(read.B, both.B[:, :rank])
        assert torch.equal(adapter.extra("score.weight"), head())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bits_take_half_the_place_for_A(dtype: str, tmp_path: Path) -> None:
    run = run_of(dtype)
    factors = published(run)
    new = tensors_of(store(tmp_path / "new", run, factors).read_bytes())
    old = tensors_of(store_as_once(tmp_path / "old", run, factors).read_bytes())
    assert new.keys() == old.keys()
    for key, (_, data) in old.items():
        assert len(new[key][1]) == (len(data) // 2 if key.endswith(".A") else len(data))


def test_a_slice_that_does_not_fit_is_refused_and_not_served_as_infinity(tmp_path: Path) -> None:
    run = run_of("float16", scaling={"alpha": 0.001})
    factors = published(run)
    with pytest.raises(AggregationError, match="does not fit into"):
        slice_factors(factors["layers.0.q_proj"], 8, served_scaling(run, 8), torch.float16)
    with pytest.raises(AggregationError, match="does not fit into"):
        sliced(store(tmp_path / "stored", run, factors), run, 8, {})
