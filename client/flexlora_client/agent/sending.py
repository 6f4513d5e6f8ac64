"""Sending what was trained until the coordinator has counted it or will never count it, and what is kept meanwhile."""

from dataclasses import dataclass

from flexlora_client.agent.reporter import EventField, Reporter
from flexlora_client.agent.upload import upload
from flexlora_client.agent.work_folder import TrainedUpdate, WorkFolder
from flexlora_client.coordinator_api.calls import Api
from flexlora_client.errors import Refused
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.messages.uploads import Receipt
from flexlora_shared.problems import Code

# The round has no place for the update now. It is kept: the round may be held again from the same adapter.
KEEP_UPDATE_CODES = frozenset({Code.ROUND_CLOSED, Code.NOT_ASSIGNED, Code.ROUND_NOT_COLLECTING})
# The update is not wanted, or diverged: the next round is another chance.
DROP_UPDATE_CODES = frozenset({Code.ALREADY_ACCEPTED, Code.INVALID_TENSOR})
# Something on this side makes such updates: the agent ends, and the next start trains again instead of sending it again.
DROP_UPDATE_AND_STOP_CODES = frozenset(
    {Code.INVALID_HEADER, Code.SIZE_IMPOSSIBLE, Code.RANK_MISMATCH, Code.DIGEST_MISMATCH}
)


@dataclass(frozen=True)
class Sender:
    """Sends one participant's updates of one run."""

    api: Api
    spec: RunSpec
    work_folder: WorkFolder
    reporter: Reporter

    def send(self, trained: TrainedUpdate) -> bool:
        """Whether the update counts, in its round or a later one.

        Raises:
            Refused: the coordinator does not want this participant, or not such an update.
        """
        try:
            receipt = self._upload(trained)
        except Refused as error:
            if error.code in DROP_UPDATE_CODES | DROP_UPDATE_AND_STOP_CODES:
                self.work_folder.drop_trained()
            if error.code not in KEEP_UPDATE_CODES | DROP_UPDATE_CODES:
                raise
            self._lost(trained, error)
            return False
        self.work_folder.drop_trained()
        self._accepted(trained, receipt)
        return True

    def send_kept(self, current: int | None = None) -> bool:
        """Send an update kept from before, unless it is of round `current`: whether there was one, and it counts.

        Only where the run counts updates that come late; else it counts if its round is held again, or never.
        """
        kept = self.work_folder.kept() if self.spec.late_updates == "next-round" else None
        if kept is None or kept.round == current:
            return False
        self.reporter.step("kept", f"round {kept.round}: sending the update trained before", round=kept.round)
        return self.send(kept)

    def _upload(self, trained: TrainedUpdate) -> Receipt:
        path = self.work_folder.output / trained.file
        with self.reporter.bytes_bar("uploading") as position:
            return upload(self.api, trained.run, trained.round, trained.upload, path, position)

    def _lost(self, trained: TrainedUpdate, error: Refused) -> None:
        sentence = f"round {trained.round}: the update does not count: {error}"
        self.reporter.step("lost", sentence, round=trained.round, code=str(error.code))

    def _accepted(self, trained: TrainedUpdate, receipt: Receipt) -> None:
        number, size = trained.round, trained.upload.size
        step = self.reporter.step
        fields: dict[str, EventField] = {"round": number, "bytes": size, "sha256": receipt.sha256}
        if receipt.counts_in > number:
            sentence = f"round {number}: update of {size} bytes accepted late: counts in round {receipt.counts_in}"
            step("late", sentence, counts_in=receipt.counts_in, **fields)
        else:
            step("accepted", f"round {number}: update of {size} bytes accepted", **fields)
