"""A few kills of `scripts/kills`: coordinator, worker and agents, at every kind of moment, each at once when it comes."""

import fcntl
from pathlib import Path

import pytest

from tests.system.endurance.gates import FOLDER, gates, wait_at_gate
from tests.system.endurance.kills import Killer
from tests.system.endurance.place import place
from tests.system.endurance.schedule import KINDS, LATER, Plan, Stroke
from tests.system.endurance.template import enroll_everybody
from tests.system.endurance.verdict import judge

pytestmark = pytest.mark.slow
STROKES = [
    [Stroke("agent", "small", "any", 0, cold=False), Stroke("coordinator", "", "part", 0, cold=True)],
    [Stroke("worker", "", "aggregating", 0, cold=False), Stroke("coordinator", "", "published", 0, cold=False)],
    [Stroke("agent", "large", "part", 0, cold=True), Stroke("coordinator", "", "aggregating", 0, cold=False)],
]


def test_six_kills(tmp_path: Path) -> None:
    template = enroll_everybody(tmp_path / "enrolled")
    with place(template, tmp_path / "undisturbed", len(STROKES)) as running:
        Killer(running).run([[] for _ in STROKES])
        undisturbed = running.published()
    with place(template, tmp_path / "killed", len(STROKES)) as running:
        killer = Killer(running, pause=lambda seconds: None)
        killer.run(STROKES)
        verdict = judge(running, undisturbed, running.receipts())
        wrong = judge(running, {}, [("nobody", 1, "0" * 64)])
    assert killer.tally.kills == 6
    assert verdict.good, verdict
    assert verdict.failed_aggregations >= 1, "the worker was killed while it aggregated"
    assert verdict.receipts > 0
    assert (wrong.lost, wrong.identical, wrong.good) == (1, False, False), "a verdict can be bad"


def test_a_gate_is_closed_until_it_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path / "gates"))
    with gates(tmp_path / "gates", 2) as made, (made.folder / "2").open("rb") as second:
        made.open(1)
        wait_at_gate(1)
        with pytest.raises(BlockingIOError):
            fcntl.flock(second, fcntl.LOCK_SH | fcntl.LOCK_NB)
        made.open(2)
        wait_at_gate(2)


def test_a_schedule_is_drawn_from_its_seed() -> None:
    agents = ["one", "other"]
    drawn = Plan(500, 100, 7).strokes(agents)
    assert drawn == Plan(500, 100, 7).strokes(agents)
    assert drawn != Plan(500, 100, 8).strokes(agents)
    every = [stroke for strokes in drawn for stroke in strokes]
    assert (len(drawn), len(every)) == (100, 500)
    assert {stroke.kind for stroke in every} == set(KINDS)
    assert {stroke.moment for stroke in every} == {"any", *LATER}
    assert "published" not in {stroke.moment for stroke in drawn[-1]}, "after the last round nobody is waited for"
