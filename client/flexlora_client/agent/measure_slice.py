"""Downloads published slices, measures them on the participant's held-out examples and reports the figures."""

from dataclasses import dataclass

from flexlora_client.agent.download import download
from flexlora_client.agent.local_trainer import LocalTrainer
from flexlora_client.agent.reporter import Reporter, format_metrics
from flexlora_client.agent.results import KeptAdapter
from flexlora_client.agent.slice_cache import CachedSlice, SliceRequest
from flexlora_client.agent.work_folder import WorkFolder
from flexlora_client.coordinator_api.calls import Api
from flexlora_client.errors import Refused
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.messages.uploads import Evaluation


@dataclass(frozen=True)
class SliceMeasuring:
    """One participant's evaluations of one run's slices."""

    api: Api
    spec: RunSpec
    work_folder: WorkFolder
    local_trainer: LocalTrainer
    reporter: Reporter

    def download(self, request: SliceRequest, number: int) -> CachedSlice:
        """The slice, from the cache or from the coordinator, for round `number`."""
        if request.sha256 is not None:
            self.work_folder.slices.keep_only(request.sha256)
        with self.reporter.bytes_bar("downloading") as on_progress:
            fetched = download(self.api, self.work_folder.slices, request, on_progress)
        self.reporter.step(
            "downloaded",
            f"round {number}: adapter of {fetched.size} bytes, {fetched.fetched} over the network",
            round=number,
            sha256=fetched.sha256,
            bytes=fetched.fetched,
        )
        return fetched

    def report(self, served: CachedSlice, published: int, request: SliceRequest, seconds: float | None) -> None:
        """Evaluate a slice once, in about `seconds`, and report the metrics to the round that published it."""
        everything = len(self.local_trainer.heldout)
        self._note(served, published, request, {})
        if not everything or self.work_folder.state.evaluated == served.sha256:
            return
        measured = self.local_trainer.evaluate(self.spec, served.folder, seconds=seconds)
        metrics, count = measured.metrics, measured.sample.examples
        counted = f"{count} held-out examples" if count == everything else f"{count} of {everything} held-out examples"
        sentence = f"adapter of round {published} on {counted}: {format_metrics(metrics)}"
        self.reporter.step("evaluated", sentence, round=published, examples=count, metrics=metrics)
        self._note(served, published, request, metrics, count)
        pattern = dict(request.rank_pattern)
        try:
            if metrics:
                evaluation = Evaluation(rank=request.rank, rank_pattern=pattern, examples=count, metrics=metrics)
                self.api.evaluate(self.spec.name, published, evaluation)
        except Refused as error:  # the figures are for people; the round goes on without them
            self.reporter.step("evaluation-refused", f"the evaluation was not taken: {error}", round=published)
        self.work_folder.set_evaluated(served.sha256, measured.sample)

    def _note(
        self,
        served: CachedSlice,
        published: int,
        request: SliceRequest,
        metrics: dict[str, float],
        sample: int = 0,
    ) -> None:
        kept = KeptAdapter(
            own=False,
            folder=f"slices/{served.sha256}",
            sha256=served.sha256,
            round=published,
            rank=request.rank,
            rank_pattern=dict(request.rank_pattern),
            metrics=metrics,
            basis=self.work_folder.basis,
            sample=sample,
        )
        self.work_folder.results.note_served(kept)
