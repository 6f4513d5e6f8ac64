"""`simulate`: what it is given, and what it gives."""

from collections import Counter
from pathlib import Path

from flexlora_simulation import simulate
from flexlora_simulation.results.tables import ParticipantRow, Row
from tests.support.simulated import folder_with_database, here, tiny_experiment


def test_every_row_is_told_as_it_is_recorded(materials: Path, tmp_path: Path) -> None:
    experiment, rows = tiny_experiment(materials, evaluation={"on": ["test"], "every": 2}), list[Row]()
    results = simulate(experiment, folder_with_database(tmp_path / "run"), executor=here, on_row=rows.append)
    metrics = 2 * 2 * len(set(results.evaluations.metric))  # rounds 0 and 2, ranks 2 and 4
    energy = 2 * 2 * len(set(results.energy.module))  # rounds 1 and 2
    expected = {"rounds": 3, "participants": 6, "evaluations": metrics, "energy": energy}
    assert Counter(row.table for row in rows) == expected
    assert [row.outcome for row in rows if isinstance(row, ParticipantRow)] == ["accepted"] * 6
    assert len(results.participants) == 6
