"""Uploads a trained update and decides by the refusal whether it is kept, dropped, or ends the agent."""

from dataclasses import dataclass

from flexlora_client.agent.reporter import Reporter
from flexlora_client.agent.upload import upload
from flexlora_client.agent.work_folder import TrainedUpdate, WorkFolder
from flexlora_client.coordinator_api.calls import Api
from flexlora_client.errors import Refused
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.messages.uploads import Receipt
from flexlora_shared.problems import Code

# The round does not take the update now. It is kept: another attempt of the round may start from the same adapter.
KEEP_UPDATE_CODES = frozenset({Code.ROUND_CLOSED, Code.NOT_ASSIGNED, Code.ROUND_NOT_COLLECTING})
# The coordinator will not take this update (a duplicate, or not finite): drop it and go on with the next round.
DROP_UPDATE_CODES = frozenset({Code.ALREADY_ACCEPTED, Code.INVALID_TENSOR})
# This agent produces invalid updates: drop this one and end the agent.
DROP_UPDATE_AND_STOP_CODES = frozenset(
    {Code.INVALID_HEADER, Code.SIZE_IMPOSSIBLE, Code.RANK_MISMATCH, Code.EXAMPLES_MISMATCH, Code.DIGEST_MISMATCH}
)
# The participant has no update for its round, which waits for it until it is told.
USELESS_UPDATE_CODES = DROP_UPDATE_AND_STOP_CODES | {Code.INVALID_TENSOR}


@dataclass(frozen=True)
class Sender:
    """Sends one participant's updates of one run."""

    api: Api
    spec: RunSpec
    work_folder: WorkFolder
    reporter: Reporter

    def send(self, trained: TrainedUpdate) -> bool:
        """Send an update; returns whether it counts, in its round or a later one.

        Raises:
            Refused: the coordinator refuses this participant or its update for good; with `invalid-tensor` this one alone.
        """
        try:
            receipt = self._upload(trained)
        except Refused as error:
            if error.code in DROP_UPDATE_CODES | DROP_UPDATE_AND_STOP_CODES:
                self.work_folder.drop_trained()
            if error.code not in KEEP_UPDATE_CODES | DROP_UPDATE_CODES:
                raise
            self._report_lost(trained, error)
            if error.code is Code.INVALID_TENSOR:
                raise
            return False
        self.work_folder.drop_trained()
        self._report_accepted(trained, receipt)
        return True

    def send_kept(self, current: int | None = None) -> bool:
        """Send an update kept from an earlier round than `current`; returns whether there was one and it counts.

        Only in runs that count late updates; elsewhere it can count only in another attempt of its round.
        """
        kept = self.work_folder.pending_update() if self.spec.late_updates == "next-round" else None
        if kept is None or kept.round == current:
            return False
        self.reporter.step("kept", f"round {kept.round}: sending the update trained before", round=kept.round)
        try:
            return self.send(kept)
        except Refused as error:
            if error.code is not Code.INVALID_TENSOR:
                raise
            return False

    def _upload(self, trained: TrainedUpdate) -> Receipt:
        if self.work_folder.unsaved is not None:
            sentence = f"round {trained.round}: {self.work_folder.unsaved}; the update is sent all the same"
            self.reporter.step("unsaved", sentence, round=trained.round)
        path = self.work_folder.output / trained.file
        with self.reporter.bytes_bar("uploading") as on_progress:
            return upload(self.api, trained.run, trained.round, trained.upload, path, on_progress)

    def _report_lost(self, trained: TrainedUpdate, error: Refused) -> None:
        sentence = f"round {trained.round}: the update does not count: {error}"
        self.reporter.step("lost", sentence, round=trained.round, code=str(error.code))

    def _report_accepted(self, trained: TrainedUpdate, receipt: Receipt) -> None:
        number, size = trained.round, trained.upload.size
        step, sha256, counts_in = self.reporter.step, receipt.sha256, receipt.counts_in
        if counts_in > number:
            sentence = f"round {number}: update of {size} bytes accepted late: counts in round {counts_in}"
            step("late", sentence, round=number, counts_in=counts_in, bytes=size, sha256=sha256)
        else:
            sentence = f"round {number}: update of {size} bytes accepted"
            step("accepted", sentence, round=number, bytes=size, sha256=sha256)
