"""Aggregates a published round again from its record and files, and says where the result differs.

No database: the files are found by their SHA-256 in a folder, and aggregated by the worker's own code.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from flexlora_server.adapter_files.global_adapter_torch import TorchGlobalAdapter
from flexlora_server.adapter_files.round_uploads import InputUpdate
from flexlora_server.aggregation.factors import GlobalFactors
from flexlora_server.worker.aggregate_round import RoundWork, write_aggregate, write_initial, write_start
from flexlora_server.worker.software import software
from flexlora_shared.messages.records import RoundRecord
from flexlora_shared.messages.runs import RunSpec


@dataclass(frozen=True)
class Replayed:
    """sha256: of what the aggregation made, None where it could not begin. faults: sentences; () where all is as recorded."""

    sha256: str | None
    faults: tuple[str, ...]


def replay(record: RoundRecord, folder: Path, threads: int = 1, device: str = "cpu") -> Replayed:
    """Aggregate the round of a record again.

    folder: a coordinator's data folder, its folder of blobs, or one of files named by their SHA-256 (`.safetensors` may follow).

    Raises:
        AggregationError: these inputs cannot be aggregated, or a plug-in is missing.
        OSError: a file cannot be read.
    """
    if record.restored is not None:
        return _published_again(record, folder)
    torch.set_num_threads(1)  # the bytes depend on the number of LAPACK threads
    threadpool_limits(1)
    named = dict(_named_files(record))
    found = {sha256: _find(folder, sha256) for sha256 in named}
    faults = [fault for sha256, what in named.items() if (fault := _fault(sha256, what, found[sha256], record))]
    if faults:
        return Replayed(None, tuple(faults))
    paths = {sha256: path for sha256, path in found.items() if path is not None}
    with TemporaryDirectory(prefix="flexlora-replay-") as temporary:
        result = Path(temporary) / "result"
        _aggregate(record, paths, result, threads, device)
        sha256 = _digest(result)
        if sha256 == record.published:
            return Replayed(sha256, ())
        first = f"the result has SHA-256 {sha256}, the round published {record.published}"
        return Replayed(sha256, (first, *_differences(record, result, paths.get(record.published), device)))


def _published_again(record: RoundRecord, folder: Path) -> Replayed:
    """A rollback aggregates nothing: the file that it published again is there as it was, or it is not."""
    what, path = f"the global update of round {record.restored}", _find(folder, record.published)
    if path is None:
        return Replayed(None, (f"{what}, which was published again, is missing, SHA-256 {record.published}",))
    fault = _fault(record.published, what, path, record)
    return Replayed(_digest(path), () if fault is None else (fault,))


def _named_files(record: RoundRecord) -> Iterator[tuple[str, str]]:
    """The files by SHA-256, and what each is; of several, what is told last."""
    for number, one in enumerate(record.inputs, 1):
        yield one.update.sha256, f"update {number} of {len(record.inputs)}"
        if one.base is not None:
            yield one.base, f"the global update that update {number} was trained from, which came late"
    if record.before is not None and record.spec.robust:
        yield record.before, f"the global update of round {record.round - 2}"
    if record.previous is None and record.spec.start_from is not None:
        yield _start_of(record.spec), "the global update that the run starts from"
    if record.previous is not None:
        yield record.previous, f"the global update of round {record.round - 1}"
    yield record.published, f"the global update of round {record.round}"


def _start_of(spec: RunSpec) -> str:
    assert spec.start_from is not None
    assert spec.start_from.sha256 is not None, "filled in when the run was created"
    return spec.start_from.sha256


def _find(folder: Path, sha256: str) -> Path | None:
    places = (f"blobs/{sha256[:2]}/{sha256}", f"{sha256[:2]}/{sha256}", sha256, f"{sha256}.safetensors")
    return next((folder / place for place in places if (folder / place).is_file()), None)


def _fault(sha256: str, what: str, path: Path | None, record: RoundRecord) -> str | None:
    if path is None:  # what was published is only compared
        why = "it was deleted, or not handed over"
        return None if sha256 == record.published else f"{what} is missing, SHA-256 {sha256}: {why}"
    found = _digest(path)
    return None if found == sha256 else f"{what} is damaged: {path} has SHA-256 {found}, not {sha256}"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _aggregate(record: RoundRecord, paths: dict[str, Path], result: Path, threads: int, device: str) -> None:
    with result.open("w+b") as file:
        if record.previous is None:
            if record.spec.start_from is None:
                write_initial(record.spec, file)
            else:
                write_start(record.spec, paths[_start_of(record.spec)], file, lambda: None)
            return
        inputs = [
            InputUpdate(
                path=paths[one.update.sha256],
                announced=one.update,
                staleness=one.staleness,
                base=None if one.base is None else paths[one.base],
                weight=one.weight,
            )
            for one in record.inputs
        ]
        before = paths.get(record.before) if record.before is not None else None
        previous = paths[record.previous]
        write_aggregate(
            RoundWork(record.spec, inputs, previous, before, record.past_norms, threads, device), file, lambda: None
        )


def _differences(record: RoundRecord, result: Path, published: Path | None, device: str) -> Iterator[str]:
    """Where the result differs from what was published, and what may be the reason."""
    if published is None:
        yield "the published file is not here, so where it differs cannot be told"
    else:
        yield _where(record, TorchGlobalAdapter(result), TorchGlobalAdapter(published))
    if not record.software:
        yield "the record does not say which versions made it; other versions of torch may round otherwise"
        return
    here = software(device)
    others = [name for name, made in record.software.items() if here.get(name) != made]
    told = ", ".join(f"{name} {record.software[name]} (here {here.get(name, 'none')})" for name in others)
    if others:
        yield f"the round was aggregated with {told}: other versions, above all of torch, may round otherwise"
    else:
        yield "the versions are the recorded ones: another processor rounds otherwise, or the record was changed"


def _where(record: RoundRecord, own: TorchGlobalAdapter, published: TorchGlobalAdapter) -> str:
    """Which tensor differs first, in the order of the file, and by how much."""
    for module in record.spec.modules:
        a, b = own.factors(module.name), published.factors(module.name)
        if not (torch.equal(a.A, b.A) and torch.equal(a.B, b.B)):
            apart = f"lora_A by up to {_most(a.A, b.A):.2g}, lora_B by up to {_most(a.B, b.B):.2g}"
            return f"module {module.name} differs first: {apart}, their product by {_relative(a, b):.2g} of its norm"
    for extra in record.spec.extra:
        if not torch.equal(one := own.extra(extra.name), other := published.extra(extra.name)):
            return f"tensor {extra.name} differs first, by up to {_most(one, other):.2g}"
    return "no tensor differs: the files are written in another way"


def _most(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).abs().max())


def _relative(one: GlobalFactors, other: GlobalFactors) -> float:
    """|W - W'| / |W'| of the products, which need not be formed: of [B B'] [A; -A'], by the QR of the right factor."""
    left, right = torch.cat([one.B, other.B], dim=1).double(), torch.cat([one.A, -other.A]).double()
    norm = float((other.B.double() @ torch.linalg.qr(other.A.double().mT).R.mT).norm())
    apart = float((left @ torch.linalg.qr(right.mT).R.mT).norm())
    return apart / norm if norm else apart
