"""A synthetic round of one module as files: the stored global update it began with, and an upload of each participant."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.lib.svd.synthetic_rounds import Round
from flexlora_server.adapter_files.dtypes import DTYPES, slice_dtype
from flexlora_server.adapter_files.global_adapter_torch import GlobalAdapterWriter, as_array, served_dtype
from flexlora_server.adapter_files.round_uploads import InputUpdate, with_weights
from flexlora_server.adapter_files.safetensors_writer import TensorWriter
from flexlora_server.aggregation.factors import GlobalFactors
from flexlora_server.aggregation.svd.stack import Term
from flexlora_server.worker.aggregate_module import RoundWork
from flexlora_shared.layout import adapter_shapes, key_A, key_B
from flexlora_shared.messages.runs import ModelSpec, ModuleSpec, RunSpec
from flexlora_shared.messages.uploads import UploadCreate

NAME = "module"


def write_files(given: Round, folder: Path, error_bound: float, dtype: str = "float32") -> RoundWork:
    """The round's files in `folder`, and the work of aggregating them with `error_bound`."""
    d, _, k = given.stack.shape
    spec = _spec(d, k, [len(term.A) for term in given.stack.terms], len(given.V), error_bound, dtype)
    previous = folder / "previous.safetensors"
    write_previous(previous, spec, GlobalFactors(given.B, given.V.to(served_dtype(spec)).float()))
    inputs = [_upload(spec, term, folder / f"{number}.safetensors") for number, term in enumerate(given.stack.terms)]
    return RoundWork(spec, with_weights(inputs), previous)


def write_previous(to: Path, spec: RunSpec, factors: GlobalFactors) -> None:
    """A stored global update of the one module."""
    with to.open("wb") as file:
        writer = GlobalAdapterWriter(file, spec)
        writer.module(NAME, factors)
        writer.close()


def _spec(d: int, k: int, ranks: Sequence[int], r_max: int, error_bound: float, dtype: str) -> RunSpec:
    return RunSpec.model_validate(
        {
            "name": "benchmark",
            "model": ModelSpec(id="none"),
            "modules": [ModuleSpec(name=NAME, out_features=d, in_features=k)],
            "ranks": sorted({*ranks, r_max}),
            "rounds": 2,
            "upload_dtype": dtype,
            "error_bound": error_bound,
        }
    )


def _upload(spec: RunSpec, term: Term, path: Path) -> InputUpdate:
    rank, dtype = len(term.A), served_dtype(spec)
    shapes = adapter_shapes(spec.modules, (), {NAME: rank})
    with path.open("wb") as file:
        writer = TensorWriter(file, {key: (DTYPES[slice_dtype(spec)], shape) for key, shape in shapes.items()})
        for key in shapes:
            factor = {key_A(NAME): term.A, key_B(NAME): term.B}[key]
            writer.write(key, as_array(factor.to(dtype)))
        writer.close()
    told = UploadCreate(rank=rank, alpha=float(rank), examples=100, size=path.stat().st_size, sha256="0" * 64)
    return InputUpdate(path, told)
