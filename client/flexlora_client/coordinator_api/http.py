"""One HTTP exchange with the coordinator: address, key, time-outs, TLS, and refusals as typed errors.

With `presigned`, the only file that imports the HTTP library. Nothing is retried here; `retry` does that.
"""

import secrets
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Self

import httpx2

from flexlora_client.coordinator_api.answers import describe_status, parse_problem
from flexlora_client.coordinator_api.http_messages import (
    CONNECT_TIMEOUT_S,
    IO_TIMEOUT_S,
    Answer,
    Body,
    Probe,
    Stream,
    describe_error,
    describe_proxy_error,
    parse_clock_ahead,
    parse_retry_after,
)
from flexlora_client.coordinator_api.presigned import stream_presigned
from flexlora_client.coordinator_api.rate import NO_LIMIT, RateLimit
from flexlora_client.coordinator_api.tls import SYSTEM_TLS, Tls, verification_fault
from flexlora_client.errors import BadInput, Refused, Unreachable, is_transient_status
from flexlora_shared.messages.clients import INSTANCE_HEADER
from flexlora_shared.versions import PROTOCOL_HEADER, VERSION_HEADER, disagreement, version, version_headers

TEMPORARY_REDIRECT = 307  # the body is at `Location`, on the object storage
MAX_ANSWER_BYTES = 16 * 2**20  # of a message; a run's definition may have 4 MiB, slices are streamed


class Http:
    """Exchanges with one coordinator under one key."""

    def __init__(
        self,
        url: str,
        key: str | None = None,
        tls: Tls = SYSTEM_TLS,
        reload_key: Callable[[], str] | None = None,
        io_timeout: float = IO_TIMEOUT_S,
        rate: RateLimit = NO_LIMIT,
    ) -> None:
        """`url` is the coordinator's base address; `rate` bounds what slices and updates take of the line.

        `reload_key` is called for the present key when the coordinator does not know `key` (any more). A
        connection without a byte for `io_timeout` seconds counts as lost.

        Raises:
            BadInput: the address or a file of `tls` cannot be used.
        """
        self.url = _check_url(url)
        self._key, self._reload_key = key, reload_key
        self._tls, self._io_timeout, self._rate = tls, io_timeout, rate
        self.clock_ahead = 0.0  # seconds that the coordinator's clock is ahead of this machine's, by its last answer
        # uncompressed: a small answer can be made to unpack to gigabytes
        plain = {"User-Agent": f"flexlora-client/{version()}", "Accept-Encoding": "identity"}
        headers = {**plain, **version_headers(), **_authorization_header(key)}
        verify = tls.verification(self.url)
        timeout = httpx2.Timeout(io_timeout, connect=CONNECT_TIMEOUT_S)
        self._client = httpx2.Client(base_url=self.url, headers=headers, timeout=timeout, verify=verify)
        self._client.headers[INSTANCE_HEADER] = secrets.token_hex(8)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Drop the connections."""
        self._client.close()

    def request(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        held: float = 0.0,
    ) -> Answer:
        """Send and read the whole answer, of at most MAX_ANSWER_BYTES. `path` is on the coordinator, with or without a query.

        `held` is the long-polling wait in seconds, for which the response may be delayed.

        Raises:
            Refused: the coordinator answered with a problem.
            Unreachable: no response, or one that is none of this protocol's.
        """
        timeout = httpx2.Timeout(self._io_timeout, connect=CONNECT_TIMEOUT_S, read=held + self._io_timeout)
        try:
            with self._client.stream(
                method, _check_path(path), headers=headers, content=self._rate.slow(body), timeout=timeout
            ) as response:
                self._check_protocol(response.headers)
                content = self._read(response)
        except httpx2.RequestError as error:
            raise self._unreachable(error) from error
        self.clock_ahead = parse_clock_ahead(response.headers) or self.clock_ahead
        if not (response.is_success or response.status_code == 304):
            raise self._refusal(response.status_code, response.headers, content)
        return Answer(response.status_code, response.headers, content)

    def probe(self) -> Probe:
        """What a small call that needs no key shows. Raises: Refused, Unreachable, as `request`."""
        try:
            with self._client.stream("GET", "/v1") as response:  # no resource: the coordinator itself says so
                self._check_protocol(response.headers)
                self.clock_ahead = parse_clock_ahead(response.headers) or self.clock_ahead
                if PROTOCOL_HEADER not in response.headers:
                    raise self._refusal(response.status_code, response.headers, self._read(response))
                tls = response.extensions["network_stream"].get_extra_info("ssl_object")
                shown = tls.getpeercert() if tls else None
        except httpx2.RequestError as error:
            raise self._unreachable(error) from error
        ends = float(ssl.cert_time_to_seconds(shown["notAfter"])) if shown else None
        return Probe(response.headers.get(VERSION_HEADER), ends)

    @contextmanager
    def stream(self, path: str, headers: Mapping[str, str] | None = None) -> Iterator[Stream]:
        """GET `path`; the body comes in chunks inside the `with` block. A status 307 names a link to it: see `stream_presigned`.

        Raises:
            Refused, Unreachable: as `request`; a cut in the middle of the body raises Unreachable from the block.
        """
        try:
            with self._client.stream("GET", _check_path(path), headers=headers) as response:
                self._check_protocol(response.headers)
                if not (response.is_success or response.status_code in (304, TEMPORARY_REDIRECT)):
                    raise self._refusal(response.status_code, response.headers, self._read(response))
                # raw chunks: with a chunk size, buffered bytes would be lost with the connection
                yield Stream(response.status_code, response.headers, self._rate.chunks(response.iter_raw()))
        except httpx2.RequestError as error:
            raise self._unreachable(error) from error

    def stream_presigned(self, link: str, begin: int) -> AbstractContextManager[Stream]:
        """GET a link that the coordinator gave, from byte `begin` on, without the key; see `presigned.stream_presigned`."""
        encrypted = self.url.startswith("https:")
        return stream_presigned(link, begin, self._tls, self._io_timeout, self._rate, encrypted=encrypted)

    def _read(self, response: httpx2.Response) -> bytes:
        """The body; nothing of a proxy's refusal that is compressed, whose status says enough.

        Raises:
            Unreachable: an answer is compressed, or longer than any message.
        """
        encoding = response.headers.get("content-encoding", "identity")
        if encoding != "identity":
            if response.is_error:
                return b""
            reason = f"{self.url} answered in the encoding {encoding[:20]!r}, which this program never asks for"
            raise Unreachable(f"{reason}; a proxy in front of it must not compress", transient=False)
        content = bytearray()
        for chunk in response.iter_raw():
            content += chunk
            if len(content) > MAX_ANSWER_BYTES:
                reason = f"{self.url} answered with more than {MAX_ANSWER_BYTES >> 20} MiB, which no message has"
                raise Unreachable(f"{reason}; check the address, or tell its operator", transient=False)
        return bytes(content)

    def _take_over_new_key(self) -> bool:
        """Reload the key; returns whether it changed, so that a retry can succeed."""
        try:
            key = self._reload_key() if self._reload_key else self._key
        except BadInput:  # the refusal is the better error
            return False
        if key == self._key:
            return False
        self._client.headers.update(_authorization_header(key))
        self._key = key
        return True

    def _check_protocol(self, headers: Mapping[str, str]) -> None:
        mismatch = disagreement(headers, f"the coordinator at {self.url}", "this program")
        if mismatch is not None:
            raise Unreachable(mismatch, transient=False)

    def _unreachable(self, error: httpx2.RequestError) -> Unreachable:
        fault = verification_fault(error)
        if fault is not None:  # it would be the same the next time
            return Unreachable(f"cannot talk to {self.url}: {fault}", transient=False)
        if isinstance(error, httpx2.ProxyError):
            refused = str(error)[:3] in ("403", "407")
            return Unreachable(f"no way to {self.url}: {describe_proxy_error(error)}", transient=not refused)
        return Unreachable(f"no answer from {self.url}: {describe_error(error)}")

    def _refusal(self, status: int, headers: Mapping[str, str], body: bytes) -> Refused | Unreachable:
        if status == 401 and self._take_over_new_key():
            return Unreachable(f"{self.url} no longer knows the key, but the home folder holds a new one")
        wait, problem = parse_retry_after(headers), parse_problem(status, headers, body)
        if problem is not None:
            return Refused(problem, wait)
        reason = describe_status(self.url, status, headers)
        return Unreachable(reason, transient=is_transient_status(status), retry_after=wait, status=status)


def _authorization_header(key: str | None) -> dict[str, str]:
    if key is not None and not (key.isascii() and key.isprintable() and key):
        raise BadInput("the API key holds characters no key has; copy it again")
    return {"Authorization": f"Bearer {key}"} if key else {}


def _check_url(url: str) -> str:
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise BadInput(f"{url!r} is no address: {error}") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise BadInput(f"{url!r} is no address of a coordinator; give one like https://flexlora.example.org")
    return str(parsed).rstrip("/")  # with its scheme in lower case


def _check_path(path: str) -> str:
    """Refuse paths that would send the key to another host: some come from the coordinator's messages."""
    if not path.startswith("/") or path.startswith("//"):
        raise Unreachable(f"the coordinator named {path!r}, which is no path on itself", transient=False)
    return path
