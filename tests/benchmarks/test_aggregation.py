"""The aggregation benchmark at tiny shapes: what it prints, and that its own arithmetic is right."""

import json
import math

import pytest
import torch

from benchmarks import aggregation, comparing, measuring
from benchmarks.contenders import Dense, by_torch, ours, torch_sum
from benchmarks.lines import KEYS, REUSED, WHOLE, floor_operations
from benchmarks.optimum import Optimum
from benchmarks.rounds import CYCLE, SHARES, make, ranks_of

ROUND = make(96, 80, [4, 8, 16, 8], 16, "federation")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No libraries that the tests do not install, and small products."""
    monkeypatch.setattr(comparing, "LIBRARIES", (Dense("again", torch_sum, by_torch, for_any_rank=False),))
    monkeypatch.setattr(measuring, "SIDE", 64)


def test_every_line_is_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--shape", "96x80", "--participants", "5", "10", "--ranks", "mixed", "--runs", "2", "--json"]
    aggregation.main(asked)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all(tuple(line) == KEYS for line in lines)
    assert [line["method"] for line in lines] == ["dense", "again", "ours"] * 2
    assert [line["dense_measured"] for line in lines] == [WHOLE] * 3 + [REUSED] * 3
    assert lines[3]["error_over_optimal"] is None
    for line in lines:
        assert line["ratio_dense"] == pytest.approx(line["dense_seconds"] / line["seconds"])
        assert line["ratio_floor"] == pytest.approx(line["seconds"] / line["floor_seconds"])
    assert lines[2]["error_over_optimal"] == pytest.approx(1, abs=1e-9)
    assert lines[2]["singular_values_error"] < 1e-9


def test_a_table_has_one_heading_a_round(capsys: pytest.CaptureFixture[str]) -> None:
    aggregation.main(
        ["--shape", "96x80", "--participants", "5", "10", "--ranks", "mixed", "--data", "flat", "--runs", "1"]
    )
    assert capsys.readouterr().out.count("error/best") == 2


def test_the_floor_by_hand() -> None:
    assert floor_operations(6, 4, R=3, r=2, certified=False) == 2 * 10 * 9 + 2 * 10 * 3 * 2
    assert floor_operations(6, 4, R=50, r=2, certified=False) == 2 * 6 * 4 * 50 + 2 * 6 * 4 * 2
    assert floor_operations(6, 4, R=50, r=2, certified=True) == 2 * (2 * 10 * 50 * 2)


@pytest.mark.parametrize("data", ["federation", "flat"])
def test_the_exact_route_has_the_smallest_error(data: str) -> None:
    for ranks in ([4, 8, 16, 8], [16] * 12):  # fewer columns than W has, and more
        given = make(96, 80, ranks, 16, data)
        found, best = ours(given, 1.0, None), Optimum(given.stack, 16)
        assert best.error_ratio(found.US, found.Vt) == pytest.approx(1, abs=1e-9)
        assert best.values_error(found.S) < 1e-9


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
    if measuring.anonymous() is None:
        pytest.skip("no /proc")
    spent = measuring.once(lambda: [torch.ones(1 << 22).mul_(2) for _ in range(20)])
    assert spent.peak_mib is not None
    assert 200 < spent.peak_mib < 400
