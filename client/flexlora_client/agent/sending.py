"""Sending what was trained until the coordinator has counted it or will never count it, and what is kept meanwhile."""

from dataclasses import dataclass

from flexlora_client.agent.reporter import Field, Reporter
from flexlora_client.agent.upload import upload
from flexlora_client.agent.work_folder import Trained, Work
from flexlora_client.coordinator_api.calls import Api
from flexlora_client.errors import Refused
from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.messages.uploads import Receipt
from flexlora_shared.problems import Code

# The round has no place for the update now. It is kept: the round may be held again from the same adapter.
NO_PLACE = frozenset({Code.ROUND_CLOSED, Code.NOT_ASSIGNED, Code.ROUND_NOT_COLLECTING})
# The update is not wanted, or diverged: the next round is another chance.
NOT_TAKEN = frozenset({Code.ALREADY_ACCEPTED, Code.INVALID_TENSOR})
# Something on this side makes such updates: the agent ends, and the next start trains again instead of sending it again.
NEVER_TAKEN = frozenset({Code.INVALID_HEADER, Code.SIZE_IMPOSSIBLE, Code.RANK_MISMATCH, Code.DIGEST_MISMATCH})


@dataclass(frozen=True)
class Sender:
    """Sends one participant's updates of one run."""

    api: Api
    spec: RunSpec
    work: Work
    reporter: Reporter

    def send(self, trained: Trained) -> bool:
        """Whether the update counts, in its round or a later one.

        Raises:
            Refused: the coordinator does not want this participant, or not such an update.
        """
        try:
            receipt = self._upload(trained)
        except Refused as error:
            if error.code in NOT_TAKEN | NEVER_TAKEN:
                self.work.drop_trained()
            if error.code not in NO_PLACE | NOT_TAKEN:
                raise
            self._lost(trained, error)
            return False
        self.work.drop_trained()
        self._accepted(trained, receipt)
        return True

    def send_kept(self, current: int | None = None) -> bool:
        """Send an update kept from before, unless it is of round `current`: whether there was one, and it counts.

        Only where the run counts updates that come late; else it counts if its round is held again, or never.
        """
        kept = self.work.kept() if self.spec.late_updates == "next-round" else None
        if kept is None or kept.round == current:
            return False
        self.reporter.step("kept", f"round {kept.round}: sending the update trained before", round=kept.round)
        return self.send(kept)

    def _upload(self, trained: Trained) -> Receipt:
        path = self.work.output / trained.file
        with self.reporter.bytes_bar("uploading") as position:
            return upload(self.api, trained.run, trained.round, trained.upload, path, position)

    def _lost(self, trained: Trained, error: Refused) -> None:
        sentence = f"round {trained.round}: the update does not count: {error}"
        self.reporter.step("lost", sentence, round=trained.round, code=str(error.code))

    def _accepted(self, trained: Trained, receipt: Receipt) -> None:
        number, size = trained.round, trained.upload.size
        step = self.reporter.step
        fields: dict[str, Field] = {"round": number, "bytes": size, "sha256": receipt.sha256}
        if receipt.counts_in > number:
            sentence = f"round {number}: update of {size} bytes accepted late: counts in round {receipt.counts_in}"
            step("late", sentence, counts_in=receipt.counts_in, **fields)
        else:
            step("accepted", f"round {number}: update of {size} bytes accepted", **fields)
