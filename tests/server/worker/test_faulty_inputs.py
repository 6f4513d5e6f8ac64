"""Inputs that break an aggregation are named, and nobody else is."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from flexlora_server.adapter_files.round_uploads import InputUpdate, RoundUploads
from flexlora_server.aggregation.factors import GlobalFactors, Update
from flexlora_server.aggregation.strategies import flexlora
from flexlora_server.aggregation.truncate import Aggregate
from flexlora_server.errors import AggregationError, LeaseLost
from flexlora_server.worker.aggregate_round import RoundWork
from flexlora_server.worker.diagnosis import FaultyInput, find_faulty_inputs
from tests.support.late import aggregated, late_round, run_of

ROBUST: tuple[list[dict[str, Any]], ...] = (
    [],
    [{"kind": "multi-krum", "byzantine_share": 0.2}],
    [{"kind": "cosine", "minimum": -1.0}],
)


def work_of(folder: Path, strategy: str = "flexlora", **changes: Any) -> RoundWork:
    """Five inputs, of which the second, fourth and fifth are late."""
    return late_round(run_of(strategy, **changes), folder).work


def blamed(work: RoundWork, folder: Path) -> tuple[FaultyInput, ...]:
    return find_faulty_inputs(work, lambda: None, folder)


def spoil(given: InputUpdate) -> None:
    """As if the rules had become stricter since it was accepted: a header that is refused."""
    data = bytearray(given.path.read_bytes())
    data[9] ^= 0x40
    given.path.write_bytes(bytes(data))


def choking(monkeypatch: pytest.MonkeyPatch, first: float) -> None:
    """FlexLoRA that cannot bear an update whose lora_A begins with this number."""
    aggregate = flexlora.aggregate

    def choke(
        updates: Sequence[Update], previous: GlobalFactors, dtype: torch.dtype, error_bound: float, **options: float
    ) -> Aggregate:
        if any(float(update.A[0, 0]) == first for update in updates):
            raise AggregationError("this one is too much.")
        return aggregate(updates, previous, dtype, error_bound, **options)

    monkeypatch.setattr(flexlora, "aggregate", choke)


@pytest.mark.parametrize("robust", ROBUST)
@pytest.mark.parametrize("strategy", ["flexlora", "flexlora-residual", "flora", "fedavg", "ffa", "hetlora"])
def test_a_sound_round_has_none(tmp_path: Path, strategy: str, robust: list[dict[str, Any]]) -> None:
    assert blamed(work_of(tmp_path, strategy, robust=robust), tmp_path) == ()


def test_without_those_named_the_round_goes_on(tmp_path: Path) -> None:
    work = work_of(tmp_path)
    spoil(work.inputs[2])
    named = {one.index for one in blamed(work, tmp_path)}
    left = [given for index, given in enumerate(work.inputs) if index not in named]
    total = sum(given.weight for given in left)
    aggregated(replace(work, inputs=[replace(given, weight=given.weight / total) for given in left]), tmp_path / "done")
    assert named == {2}


def test_updates_that_are_none_any_more(tmp_path: Path) -> None:
    """As if the rules had become stricter since they were accepted."""
    work = work_of(tmp_path)
    strict = work.spec.model_copy(update={"norm_bound": 1e-3})
    assert [one.index for one in blamed(replace(work, spec=strict), tmp_path)] == list(range(5))
    assert all(
        "would not be accepted now (tensor 'base_model" in one.reason
        for one in blamed(replace(work, spec=strict), tmp_path)
    )


def test_one_that_the_strategy_chokes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = work_of(tmp_path)
    choking(monkeypatch, _first_number(work, 3))
    [one] = blamed(work, tmp_path)
    assert one.index == 3
    assert one.reason == "it cannot be aggregated, not even alone (AggregationError: this one is too much); exclude it"


def test_where_everything_fails_nobody_is_blamed_but_for_what_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = work_of(tmp_path)

    def broken(*_: object, **__: object) -> Aggregate:
        raise AggregationError("nothing works")

    monkeypatch.setattr(flexlora, "aggregate", broken)
    assert blamed(work, tmp_path) == ()
    spoil(work.inputs[2])
    assert [one.index for one in blamed(work, tmp_path)] == [2]


def test_a_storage_that_fails_is_nobodys_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = work_of(tmp_path)

    def full(*_: object, **__: object) -> Aggregate:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(flexlora, "aggregate", full)
    with pytest.raises(OSError, match="No space left"):
        blamed(work, tmp_path)


def test_a_lost_lease_stops_the_search(tmp_path: Path) -> None:
    work = work_of(tmp_path)

    def lost() -> None:
        raise LeaseLost("taken over")

    with pytest.raises(LeaseLost):
        find_faulty_inputs(work, lost, tmp_path)


def _first_number(work: RoundWork, index: int) -> float:
    return float(RoundUploads(work.spec, work.inputs).updates("layers.0.proj")[index].A[0, 0])
