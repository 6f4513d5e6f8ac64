"""A federation that ends anywhere goes on to the same bytes and the same tables."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from flexlora_client.errors import DivergedError
from flexlora_server.database.transactions import Store, Tx
from flexlora_simulation import Results
from flexlora_simulation.engine.jobs import TrainedUpdate, TrainingJob
from tests.simulation.engine.conftest import Run
from tests.support.simulated import Nudging

# late updates, dropouts, failures, over-selection, rounds held again, slow transfers, an optimizer's state that is kept
EVENTFUL: dict[str, Any] = {
    "partition": {"participants": 7},
    "resources": [{"rank": 2}, {"rank": 4}],
    "timing": {"spread": 0.5, "jitter": 0.5, "dropout": 0.35, "available": 0.9, "bytes_per_second": 4000.0},
    "run": {
        "rounds": 4,
        "over_selection": 1,
        "min_updates": 3,
        "min_clients": 3,
        "round_timeout": 8.0,
        "grace": 1.0,
        "late_updates": "next-round",
        "training": {
            "max_steps": 3,
            "batch_size": 4,
            "max_length": 16,
            "optimizer_state": "keep",
        },
    },
}
OF_THE_CLOCK = ["wall_seconds", "aggregation_seconds", "cpu_seconds"]


class Killed(BaseException):
    """Nothing is tidied up after it."""


class Eventful(Nudging):
    """One training fails."""

    def train(self, job: TrainingJob) -> TrainedUpdate:
        if (job.participant, job.task.round) == ("participant-00002", 2):
            raise DivergedError("the loss is nan at step 1.")
        return super().train(job)


def tables(results: Results) -> list[str]:
    frames = [results.rounds, results.participants, results.evaluations]
    return [frame.drop(columns=OF_THE_CLOCK, errors="ignore").to_csv() for frame in frames]


@pytest.fixture
def dies_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Lets the process die after so many commits, or live (0)."""
    left, transaction = [0], Store.transaction

    @contextmanager
    def counted(self: Store) -> Iterator[Tx]:
        with transaction(self) as tx:
            yield tx
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    monkeypatch.setattr(Store, "transaction", counted)

    def set_commits(commits: int) -> None:
        left[0] = commits

    return set_commits


def resumed(run: Run, dies_after: Callable[[int], None], commits: int) -> Results:
    """A federation that dies after so many commits, again and again until it is over."""
    while True:
        dies_after(commits)
        try:
            return run(Eventful, folder=f"killed-{commits}", **EVENTFUL)[0]
        except Killed:
            continue


def test_a_federation_that_is_killed_after_commits_ends_the_same(run: Run, dies_after: Callable[[int], None]) -> None:
    undisturbed, _ = run(Eventful, folder="undisturbed", **EVENTFUL)
    expected = tables(undisturbed)
    assert set(undisturbed.participants.outcome) == {"accepted", "late", "discarded", "vanished", "failed"}
    assert undisturbed.rounds.attempt.max() > 1
    assert tables(resumed(run, dies_after, 17)) == expected


@pytest.mark.slow
@pytest.mark.parametrize("commits", range(5, 17))
def test_it_does_so_wherever_that_is(run: Run, dies_after: Callable[[int], None], commits: int) -> None:
    expected = tables(run(Eventful, folder="undisturbed", **EVENTFUL)[0])
    assert tables(resumed(run, dies_after, commits)) == expected
