"""Uploads an update: announce, send parts, commit; after a lost connection it resumes at the coordinator's offset."""

import time
from pathlib import Path

from flexlora_client.coordinator_api.calls import Api
from flexlora_client.coordinator_api.upload_parts import MIN_PART_BYTES, Part, PartSizer, ProgressCallback, read_part
from flexlora_client.errors import BadInput, ClientError, Refused, Unreachable
from flexlora_client.files import sha256_of
from flexlora_shared.messages.uploads import Receipt, UploadCreate
from flexlora_shared.problems import Code

MAX_DAMAGED_ATTEMPTS = 3  # of the update, and of each of its parts


def upload(
    api: Api, run: str, number: int, announced: UploadCreate, file: Path, on_progress: ProgressCallback
) -> Receipt:
    """Send `file` to round `number` and have it counted.

    Raises:
        Refused: the coordinator refuses the update (late, not assigned, an invalid tensor ...).
        Unreachable: the coordinator does not answer and no attempt is left.
        BadInput: the file changed since it was announced.
    """
    return _Upload(api, run, number, announced, file, on_progress).run()


class _Upload:
    """The upload of one update: its id and offset as far as they are known."""

    def __init__(
        self, api: Api, run: str, number: int, announced: UploadCreate, file: Path, on_progress: ProgressCallback
    ) -> None:
        self._api, self._run, self._number = api, run, number
        self._announced, self._file, self._on_progress = announced, file, on_progress
        self._id: str | None = None
        self._offset: int | None = None
        self._reached = 0  # bytes that the coordinator last confirmed
        self._attempts = api.retry.start()
        self._part_sizer = PartSizer()
        self._damaged = 0
        self._damaged_part = 0

    def run(self) -> Receipt:
        while True:
            try:
                return self._api.commit(self._send())
            except Refused as error:
                self._recover(error)
            except Unreachable as error:
                self._offset = None
                self._attempts.failed(error)

    def _create(self) -> tuple[str, int]:
        """Announce the update; returns the upload's id and offset. Repeating it finds the same upload."""
        status = self._api.create_upload(self._run, self._number, self._announced)
        if status.id != self._id:
            self._id, self._reached = status.id, status.offset
        self._offset = status.size if status.state == "ACCEPTED" else status.offset
        return status.id, self._offset

    def _locate_upload(self) -> tuple[str, int]:
        """The upload's id, and the offset at which to continue."""
        if self._id is None:
            return self._create()
        if self._offset is not None:
            return self._id, self._offset
        try:
            return self._id, self._api.upload_offset(self._id)
        except Unreachable as error:
            if error.transient:
                raise
            return self._create()  # a refused HEAD has no body with the reason; this call has

    def _send(self) -> str:
        """Send the missing parts; returns the upload's id."""
        upload, offset = self._locate_upload()
        self._note_progress(offset)
        size = self._announced.size
        while offset < size:
            part = read_part(self._file, offset, min(self._part_sizer.bytes, size - offset))
            self._offset = offset = self._send_part(upload, part)
            self._note_progress(offset)
        self._offset = offset
        return upload

    def _send_part(self, upload: str, part: Part) -> int:
        """Send one part; returns the confirmed offset."""
        size, begun = self._announced.size, time.monotonic()
        try:
            offset = self._api.send_part(upload, part, part.chunks(self._on_progress, size), last=part.end == size)
        except ClientError as error:
            if isinstance(error, Unreachable) and error.status == 413 and len(part.content) > MIN_PART_BYTES:
                self._part_sizer.refused()
                error.transient = True
            else:
                self._part_sizer.cut()
            raise
        self._part_sizer.sent(time.monotonic() - begun)
        self._damaged_part = 0
        return offset

    def _note_progress(self, offset: int) -> None:
        """Reset the count of failures when more bytes have arrived, also of an interrupted part."""
        if offset > self._reached:
            self._attempts.progressed()
        self._reached = offset

    def _recover(self, error: Refused) -> None:
        """Adapt the state to the refusal and wait, or raise `error` where the upload cannot go on."""
        self._offset = None
        if error.code is Code.OFFSET_MISMATCH:
            offset = error.problem.context.get("offset")
            self._offset = offset if isinstance(offset, int) and 0 <= offset <= self._announced.size else None
            self._note_progress(self._offset or 0)
        elif error.code is Code.UPLOAD_NOT_FOUND:
            self._id = None
        elif error.code is Code.DIGEST_MISMATCH:
            self._id = None
            self._damaged += 1
            self._check_file_unchanged()
        elif error.code is Code.PART_DIGEST_MISMATCH:
            self._damaged_part += 1
        elif error.code is not Code.UPLOAD_INCOMPLETE:
            self._attempts.failed(error)
            return
        self._attempts.failed(error, recoverable=max(self._damaged, self._damaged_part) < MAX_DAMAGED_ATTEMPTS)

    def _check_file_unchanged(self) -> None:
        if sha256_of(self._file) != self._announced.sha256:
            raise BadInput(f"{self._file} changed after it was announced; start again to train anew") from None
