"""Downloading a served slice: resumed after a cut, checked before it is used.

The bytes come from somebody else: digest, size bound and the strict header are checked before anything opens the file.
"""

import shutil
from pathlib import Path

from flexlora_client.agent.slice_cache import CachedSlice, SliceCache, SliceRequest, check_config
from flexlora_client.coordinator_api.calls import Api
from flexlora_client.coordinator_api.http import TEMPORARY_REDIRECT
from flexlora_client.coordinator_api.http_messages import Stream
from flexlora_client.coordinator_api.presigned import RANGE_NOT_SATISFIABLE
from flexlora_client.coordinator_api.upload_parts import ProgressCallback
from flexlora_client.errors import BadInput, ClientError, Corrupted, Refused, Unreachable
from flexlora_client.files import make_folder, sha256_of, sync_file, sync_folder, write_whole
from flexlora_client.training.contract import ADAPTER_FILE, CONFIG_FILE
from flexlora_shared.header import HeaderError, TensorError, read_header
from flexlora_shared.layout import size_bounds
from flexlora_shared.problems import Code

MAX_DAMAGED_ATTEMPTS = 3


def download(api: Api, cache: SliceCache, request: SliceRequest, on_progress: ProgressCallback) -> CachedSlice:
    """The requested slice: from the cache where it is there, else downloaded.

    Raises:
        Refused, Unreachable: the coordinator refuses, or does not answer and no attempt is left.
        Corrupted: the bytes do not match the announcement after MAX_DAMAGED_ATTEMPTS downloads.
    """
    return _Download(api, cache, request, on_progress).run()


class _Download:
    """The download of one slice."""

    def __init__(self, api: Api, cache: SliceCache, request: SliceRequest, on_progress: ProgressCallback) -> None:
        self._api, self._cache, self._request, self._on_progress = api, cache, request, on_progress
        self._folder = cache.folder
        self._attempts = api.retry.start()
        self._sha256 = request.sha256
        self._limit = size_bounds(request.shapes)[1]
        self._fetched = 0

    def run(self) -> CachedSlice:
        damaged = 0
        while True:
            try:
                kept = self._cache.find(self._sha256) if self._sha256 else None
                return CachedSlice.at(kept or self._transfer(), self._fetched)
            except Corrupted as error:
                damaged += 1
                self._attempts.failed(error, recoverable=damaged < MAX_DAMAGED_ATTEMPTS)
            except Refused as error:
                beyond = error.code is Code.RANGE_NOT_SATISFIABLE
                if beyond:
                    damaged += 1
                    self._forget()
                self._attempts.failed(error, recoverable=beyond and damaged < MAX_DAMAGED_ATTEMPTS)
            except ClientError as error:
                self._attempts.failed(error)

    def _transfer(self) -> Path:
        begin = self._partial_size()
        if begin == 0 or begin != self._request.size:
            with self._api.http.stream(self._request.path, self._conditions(begin)) as stream:
                self._check_announced_digest(stream)
                if stream.status == 304:
                    return self._folder / self._digest
                if stream.status != TEMPORARY_REDIRECT:
                    self._write(stream, begin)
            if stream.status == TEMPORARY_REDIRECT:
                self._transfer_from_storage(stream.headers.get("location", ""), begin)
        self._check()
        return self._finish()

    def _transfer_from_storage(self, link: str, begin: int) -> None:
        """Download from the object storage; the link expires, and each attempt gets a new one from the coordinator."""
        with self._api.http.stream_presigned(link, begin) as stream:
            if stream.status == RANGE_NOT_SATISFIABLE:
                raise self._damaged("more was kept of the slice than it has")
            self._write(stream, begin)

    @property
    def _digest(self) -> str:
        if self._sha256 is None:
            raise Unreachable("the coordinator announced no digest", transient=False)
        return self._sha256

    @property
    def _partial(self) -> Path:
        return self._folder / f"{self._digest}.partial"

    def _partial_size(self) -> int:
        if self._sha256 is None or not (self._partial / ADAPTER_FILE).exists():
            return 0
        return (self._partial / ADAPTER_FILE).stat().st_size

    def _conditions(self, begin: int) -> dict[str, str]:
        if begin:
            return {"Range": f"bytes={begin}-", "If-Range": f'"{self._digest}"'}
        kept = self._cache.digests() if self._sha256 is None else []
        return {"If-None-Match": ", ".join(f'"{digest}"' for digest in kept)} if kept else {}

    def _check_announced_digest(self, stream: Stream) -> None:
        """Take the digest from the response, or check that it is the expected one."""
        digest = stream.headers.get("etag", "").strip('"')
        if len(digest) != 64 or not digest.isalnum():
            raise Unreachable(f"the coordinator sent no digest with the slice (ETag {digest[:80]!r})", transient=False)
        if self._sha256 is not None and digest != self._sha256:
            raise Corrupted(f"the slice at {self._request.path} has digest {digest}, the task announced {self._sha256}")
        self._sha256 = digest

    def _write(self, stream: Stream, requested_offset: int) -> None:
        """Write the body to the partial file: from `requested_offset` on a 206, else from the start."""
        begin = requested_offset if stream.status == 206 else 0
        make_folder(self._partial)
        total = begin + int(stream.headers.get("content-length", 0))
        try:
            self._write_chunks(stream, begin, total)
        except OSError as error:
            raise BadInput(
                f"cannot write {self._partial}: {error.strerror}; free space, or give another --home"
            ) from None

    def _write_chunks(self, stream: Stream, begin: int, total: int) -> None:
        with (self._partial / ADAPTER_FILE).open("r+b" if begin else "wb") as file:
            file.seek(begin)
            file.truncate()
            for chunk in stream.chunks:
                file.write(chunk)
                self._attempts.progressed()
                self._fetched += len(chunk)
                self._on_progress(file.tell(), total)
                if file.tell() > self._limit:
                    raise self._damaged(f"the slice is longer than the {self._limit} bytes its tensors can take")

    def _check(self) -> None:
        path = self._partial / ADAPTER_FILE
        if (digest := sha256_of(path)) != self._digest:
            raise self._damaged(f"the slice arrived with digest {digest} instead of {self._digest}")
        try:
            with path.open("rb") as file:
                read_header(file, path.stat().st_size, self._request.shapes)
        except (HeaderError, TensorError) as error:
            raise self._damaged(f"the coordinator's slice is no adapter of this run: {error}") from None

    def _finish(self) -> Path:
        config = self._api.adapter_config(self._request.config_path)
        check_config(config, self._request)
        write_whole(self._partial / CONFIG_FILE, config)
        sync_file(self._partial / ADAPTER_FILE)
        folder = self._folder / self._digest
        shutil.rmtree(folder, ignore_errors=True)
        self._partial.replace(folder)
        sync_folder(self._folder)
        return folder

    def _damaged(self, reason: str) -> Corrupted:
        self._forget()
        return Corrupted(reason)

    def _forget(self) -> None:
        """Delete the partial file, so that the next attempt starts from byte 0."""
        (self._partial / ADAPTER_FILE).unlink(missing_ok=True)
