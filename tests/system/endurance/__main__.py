"""`scripts/kills`: the command line of the long run with kills."""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from sqlalchemy import URL

from tests.support.postgres import postgres
from tests.system.endurance.kills import Killer, Tally
from tests.system.endurance.place import place
from tests.system.endurance.schedule import Plan
from tests.system.endurance.template import AGENTS, enroll_everybody
from tests.system.endurance.verdict import judge

EVERY = 25  # kills between lines of progress
PER_ROUND = 5  # kills


def main() -> int:
    """Run undisturbed, run with kills, compare; the exit code says whether all is well."""
    options = _options()
    plan = Plan(options.kills, options.rounds or max(2, options.kills // PER_ROUND), options.seed)
    folder = Path(tempfile.mkdtemp(prefix="flexlora-kills-"))
    started = time.monotonic()
    template = enroll_everybody(folder / "enrolled")
    with place(template, folder / "undisturbed", plan.rounds) as running:
        Killer(running).run([[] for _ in range(plan.rounds)])
        undisturbed = running.published()
    _say(started, f"{plan.rounds} rounds undisturbed")
    with _database(options.postgresql) as url, place(template, folder / "killed", plan.rounds, url) as running:
        killer = Killer(running, told=lambda tally, number: _progress(started, plan, tally, number))
        killer.run(plan.strokes(list(AGENTS)))
        verdict = judge(running, undisturbed, running.receipts())
    seconds = round(time.monotonic() - started, 1)
    print(json.dumps({"seed": plan.seed, **killer.tally.told(), **asdict(verdict), "seconds": seconds}, indent=2))
    if not verdict.good:
        print(f"NOT as undisturbed; everything is kept in {folder}", file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=60, help="kills in all [60]")
    parser.add_argument("--rounds", type=int, help=f"rounds of the run [a round for every {PER_ROUND} kills]")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn: victims, moments, delays [0]")
    parser.add_argument("--postgresql", action="store_true", help="kill on a PostgreSQL of its own, not on SQLite")
    return parser.parse_args()


@contextmanager
def _database(wanted: bool) -> Iterator[URL | None]:
    if not wanted:
        yield None
        return
    with postgres() as running:
        yield running.url


def _progress(started: float, plan: Plan, tally: Tally, number: int) -> None:
    if tally.kills % EVERY == 0:
        _say(started, f"{tally.kills} of {plan.kills} kills, round {number} of {plan.rounds}, {dict(tally.kinds)}")


def _say(started: float, what: str) -> None:
    print(f"{time.monotonic() - started:7.1f} s: {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
