"""The aggregation benchmark at tiny shapes: what it prints, and that its own arithmetic is right."""

import json
import math

import pytest
import threadpoolctl
import torch

from benchmarks import aggregation
from benchmarks.lib.svd import comparing, measuring, memory
from benchmarks.lib.svd.lines import KEYS, REUSED, WHOLE, floor_operations
from benchmarks.lib.svd.reference_svd import Optimum
from benchmarks.lib.svd.svd_baselines import Dense, by_torch, ours, torch_sum
from benchmarks.lib.svd.synthetic_rounds import CYCLE, make, ranks_of
from flexlora_simulation.experiment import SHARES

ROUND = make(96, 80, [4, 8, 16, 8], 16, "federation")
AGAIN = Dense("again", by_torch, for_any_rank=False)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No libraries that the tests do not install, and small products."""
    monkeypatch.setattr(comparing, "LIBRARIES", (AGAIN, Dense("first", by_torch, first_only=True)))
    monkeypatch.setattr(measuring, "SIDE", 64)


def test_every_line_is_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--shape", "96x80", "--participants", "5", "10", "--ranks", "mixed", "--runs", "2", "--json"]
    aggregation.main(asked)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all(tuple(line) == KEYS for line in lines)
    assert [line["method"] for line in lines] == ["dense", "again", "first", "ours", "dense", "again", "ours"]
    assert [line["dense_measured"] for line in lines] == [WHOLE] * 4 + [REUSED] * 3
    assert lines[4]["error_over_optimal"] is None
    for line in lines:
        assert line["ratio_dense"] == pytest.approx(line["dense_seconds"] / line["seconds"])
        assert line["ratio_floor"] > 0
        assert (line["share_of_figures"] is not None) == (line["method"] == "ours")
    assert 0 < lines[3]["share_of_figures"] < 1
    assert lines[3]["error_over_optimal"] == pytest.approx(1, abs=1e-9)
    assert lines[3]["singular_values_error"] < 1e-9


def test_a_table_has_one_heading_a_round(capsys: pytest.CaptureFixture[str]) -> None:
    aggregation.main(
        ["--shape", "96x80", "--participants", "5", "10", "--ranks", "mixed", "--data", "flat", "--runs", "1"]
    )
    assert capsys.readouterr().out.count("error/best") == 2


@pytest.mark.parametrize("participants", [1, 3])
def test_ranks_that_sum_to_less_than_the_largest_are_measured(
    participants: int, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--shape", "96x80", "--participants", str(participants), "--ranks", "mixed", "--runs", "1", "--json"]
    aggregation.main(asked)
    lines = [json.loads(line, parse_constant=pytest.fail) for line in capsys.readouterr().out.splitlines()]
    assert {line["error_over_optimal"] for line in lines} == {None}  # nothing is lost
    assert lines[-1]["singular_values_error"] < 1e-9


def test_the_quick_rounds_are_measured_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aggregation, "SHAPES", ("96x80",))
    aggregation.main(["--quick", "--runs", "1", "--json"])
    out, told = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert [(line["method"], line["participants"]) for line in lines if line["method"] == "dense"] == [
        ("dense", 10),
        ("dense", 100),
    ]
    assert all(line["dense_measured"] == WHOLE and line["error_over_optimal"] >= 1 - 1e-9 for line in lines)
    assert "] round 2 of 2\n" in told


@pytest.mark.parametrize("option", [["--shape", "96x80"], ["--participants", "5"], ["--ranks", "mixed"], ["--all"]])
def test_quick_refuses_what_it_would_ignore(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        aggregation.main(["--quick", *option])
    assert f"leave out {option[0]}" in capsys.readouterr().err


def test_no_answer_starts_from_directions_that_flat_data_lack(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparing, "iterates", lambda given: True)
    for data, ours_ in (("flat", ["ours", "ours cold"]), ("federation", ["ours", "ours warm", "ours cold"])):
        asked = ["--shape", "96x80", "--participants", "5", "--ranks", "mixed", "--runs", "1", "--json"]
        aggregation.main([*asked, "--data", data])
        methods = [json.loads(line)["method"] for line in capsys.readouterr().out.splitlines()]
        assert methods[3:] == ours_


@pytest.mark.parametrize(
    ("R", "iterates", "sums", "expected"),
    [
        (2, False, False, 2 * 10 * 2 * 2 + 2 * 10 * 2 * 2),  # Gram matrices and back-projections
        (3, False, False, 2 * 6 * 4 * 3 + 2 * 6 * 4 * 2),  # W is cheaper, though R < min(d, k)
        (50, False, False, 2 * 6 * 4 * 50 + 2 * 6 * 4 * 2),
        (2, False, True, 2 * 6 * 4 * 2 + 2 * 6 * 4 * 2),
        (2, True, False, 2 * (2 * 10 * 2 * 2)),  # to and fro through the stack
        (50, True, False, 2 * 6 * 4 * 50 + 2 * (2 * 6 * 4 * 2)),  # through W
        (2, True, True, 2 * 6 * 4 * 2 + 2 * (2 * 6 * 4 * 2)),
    ],
)
def test_the_floor_by_hand(R: int, iterates: bool, sums: bool, expected: int) -> None:
    assert floor_operations(6, 4, R, 2, iterates, sums) == expected


def test_a_budget_without_room_keeps_the_first_run() -> None:
    calls: list[int] = []
    assert measuring.repeated(lambda: calls.append(1), runs=5, budget=0.0).runs == len(calls) == 1
    assert measuring.repeated(lambda: calls.append(1), runs=2, budget=60.0).runs == len(calls) - 2 == 2


def test_runs_are_compared_with_the_rate_beside_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine gets slower while it measures: 1, 10, 100 operations a second beside runs of 8, 4 and 2 seconds."""
    rates, times = iter([7.0, 1.0, 10.0, 100.0]), iter([1.0, 8.0, 4.0, 2.0])
    monkeypatch.setattr(measuring, "gflops", lambda: next(rates))
    monkeypatch.setattr(measuring, "timed", lambda work: (work(), next(times)))
    spent = measuring.repeated(lambda: "made", runs=3, budget=60.0)
    assert (spent.made, spent.runs, spent.seconds, spent.gflops, spent.gflop) == ("made", 3, 4.0, 10.0, 40.0)


def test_other_libraries_have_one_thread_too() -> None:
    with measuring.one_thread():
        assert {pool["num_threads"] for pool in threadpoolctl.threadpool_info()} == {1}


@pytest.mark.parametrize("data", ["federation", "flat"])
def test_the_exact_route_has_the_smallest_error(data: str) -> None:
    for ranks in ([4, 8, 16, 8], [16] * 12):  # fewer columns than W has, and more
        given = make(96, 80, ranks, 16, data)
        found, best = ours(given, 1.0, None), Optimum(given.stack, 16)
        assert best.error_ratio(found.US, found.Vt) == pytest.approx(1, abs=1e-9)
        assert best.values_error(found.S) == pytest.approx(0, abs=1e-9)


def test_a_worse_truncation_has_the_ratio_that_its_definition_says() -> None:
    found, best = ours(ROUND, 1.0, None), Optimum(ROUND.stack, 16)
    W, half = torch_sum(ROUND.stack).double(), found.US * torch.linspace(1, 0, 16)
    errors = [float(torch.linalg.matrix_norm(W - US @ found.Vt)) for US in (half, found.US)]
    assert best.error_ratio(half, found.Vt) == pytest.approx(errors[0] / errors[1], rel=1e-5)


def test_ranks_by_mix() -> None:
    assert ranks_of("mixed", 10, mlp=False) == [*CYCLE, *CYCLE]
    assert sum(ranks_of("mixed", 10, mlp=True)) == 248
    assert ranks_of("uniform", 8, mlp=False) == [8, 8, 30, 30, 30, 30, 200, 200]
    assert ranks_of("uniform", 4, mlp=True) == [8, 30, 200, 200]
    for mix, shares in SHARES.items():
        assert math.isclose(sum(shares), 1)
        assert [len(ranks_of(mix, people, mlp=True)) for people in (1, 10, 999)] == [1, 10, 999]


def test_memory_is_seen_while_it_is_held() -> None:
    if memory.anonymous() is None:
        pytest.skip("no /proc")
    spent = measuring.once(lambda: [torch.ones(1 << 22).mul_(2) for _ in range(20)])
    assert spent.peak_mib is not None
    assert 200 < spent.peak_mib < 400
