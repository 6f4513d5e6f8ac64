"""The robustness benchmark in small: its table, its JSON, and that filters save what it says they save."""

import json

import pytest
import torch

from benchmarks.hostile import ATTACKS, DTYPE, forged, multiplied, task, trained
from benchmarks.robustness import NOBODY, STRATEGIES, calm, filters, main
from flexlora_server.aggregation.factors import slice_factors


def test_one_seed_prints_a_table_and_ends_with_json(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--seeds", "1"])
    *table, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    assert (found["participants"], found["hostile"], found["seeds"]) == (20, 3, 1)
    assert len(table) == 2 + len(STRATEGIES) * (1 + len(ATTACKS))
    assert {line.count(" | ") for line in table[::2]} == {1 + len(filters(1.0))}
    for rows in found["errors"].values():
        assert list(rows) == [NOBODY, *ATTACKS]
        assert rows[NOBODY]["none"] == 0
        boosted = rows["boosted x100"]
        assert boosted["none"] > 5
        assert all(boosted[name] < boosted["none"] / 10 for name in filters(1.0) if name not in ("none", "cosine"))


def test_only_the_json_where_that_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--seeds", "1", "--json"])
    [line] = capsys.readouterr().out.splitlines()
    assert set(json.loads(line)["errors"]) == set(STRATEGIES)


def test_a_forged_update_is_the_multiple_of_the_honest_change() -> None:
    """At the participant's own rank, so nearly: the change of B dominates."""
    generator = torch.Generator().manual_seed(0)
    given = task(generator)
    start = calm("flexlora-residual", given, 1.0, generator)
    update = trained(given, start.previous, 1.0, generator)[3]
    forgery = forged(update, start.previous, multiplied(-10.0), generator)
    A, B = (x.double() for x in slice_factors(start.previous, update.rank, update.served_scaling, DTYPE))
    W, X = (u.scaling * u.B.double() @ u.A.double() for u in (update, forgery))
    S = update.served_scaling * B @ A
    assert float((X - S + 10 * (W - S)).norm() / (10 * (W - S)).norm()) < 0.1
