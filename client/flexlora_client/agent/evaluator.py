"""The loop of a participant that measures without training: it declares nothing, so no round waits for it.

Its data is nobody's training data: what it reports says how the adapters do where they were never trained.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from flexlora_client.agent.measure_slice import SliceMeasuring
from flexlora_client.agent.slice_cache import request_for_round
from flexlora_client.errors import Refused, RunEnded
from flexlora_shared.problems import Code

POLL_RANGE_S = 10.0, 20.0  # each wait is drawn from it: rounds take minutes, and many evaluators must not ask in bursts
ENDED = ("CANCELLED", "FAILED")


@dataclass(frozen=True)
class Evaluator:
    """Measures every adapter that a run publishes, at one rank, on all of the participant's data."""

    measuring: SliceMeasuring
    rank: int
    rank_pattern: Mapping[str, int]
    max_rounds: int | None = None  # stop after this many adapters

    def run(self) -> None:
        """Measure the adapter published last, then each as it is published, until the run completes.

        Raises:
            RunEnded: the run was cancelled or failed.
            Refused: the coordinator refuses this participant or its rank for good.
            TrainingError, BadInput: something on this side cannot be used.
        """
        self.measuring.work_folder.results.agree(self.measuring.spec)
        step, api, name = self.measuring.reporter.step, self.measuring.api, self.measuring.spec.name
        step("evaluating", f"measuring each adapter at rank {self.rank}, without training", rank=self.rank)
        status = api.run(name).status
        number, measured, waited_for = status.rounds_published, 0, -1
        while self.max_rounds is None or measured < self.max_rounds:
            if number <= status.rounds_published and self._measure(number):
                number, measured = number + 1, measured + 1
                continue
            if status.state in ENDED:
                raise RunEnded(f"run {name} is {status.state}: {status.reason or 'no reason was given'}")
            if status.state == "COMPLETED":
                step("completed", f"the run is complete after {number - 1} rounds", rounds=number - 1)
                return
            if waited_for != number:
                step("waiting", f"waiting for the adapter of round {number}: {status.waiting_for}", round=number)
                waited_for = number
            api.retry.sleep(api.retry.uniform(*POLL_RANGE_S))
            status = api.run(name).status
        step("stopped", f"{measured} adapters measured, stopping as asked", measured=measured)

    def _measure(self, number: int) -> bool:
        """Measure the adapter of a round and report it; whether it was published."""
        request = request_for_round(self.measuring.spec, number, self.rank, self.rank_pattern)
        try:
            served = self.measuring.download(request, number)
        except Refused as error:
            if error.code is not Code.ADAPTER_NOT_PUBLISHED:  # round 0 of a run that has just begun, or has not
                raise
            return False
        self.measuring.report(served, number, request, seconds=None)
        self.measuring.work_folder.slices.keep_only(served.sha256)
        return True
