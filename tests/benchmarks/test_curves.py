"""The curves' rounds and drawing; what they measure is tested elsewhere."""

from pathlib import Path

import pytest

from benchmarks import curves
from benchmarks.curves import AXES, METHODS, Point, draw, measured, round_of


def test_a_round_follows_its_axis() -> None:
    assert round_of("participants", 10, 1 / 16).stack.shape == (128, 248, 128)
    assert round_of("r_max", 32, 1 / 16).stack.shape == (128, 620, 128)
    assert round_of("size", 512, 1 / 8).stack.shape == (64, 1240, 64)


def test_every_method_is_timed() -> None:
    given = round_of("participants", 10, 1 / 16)
    for method in METHODS:
        route, seconds = measured(method, given, 64)
        assert route
        assert seconds > 0


def test_the_same_points_give_the_same_small_file(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found = [Point(axis, at, m, "qr", at / 100) for axis, (_, values) in AXES.items() for at in values for m in METHODS]
    for name in ("one.svg", "two.svg"):
        draw(found, tmp_path / name)
    one, two = ((tmp_path / name).read_bytes() for name in ("one.svg", "two.svg"))
    assert one == two
    assert len(one) < 300_000
    assert all(label.encode() in one for label in (*METHODS.values(), *(label for label, _ in curves.AXES.values())))
