"""One HTTP exchange with the coordinator: address, key, time-outs, TLS, and refusals as typed errors.

With `links`, the only file that imports the HTTP library. Nothing is tried twice here; `retry` does that around it.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Self

import httpx2

from flexlora_client.coordinator_api.answers import problem_of, reason_of_status
from flexlora_client.coordinator_api.http_messages import (
    CONNECT_TIMEOUT,
    IO_TIMEOUT,
    Answer,
    Body,
    Stream,
    reason_of,
    wait_of,
)
from flexlora_client.coordinator_api.presigned import follow
from flexlora_client.coordinator_api.tls import trust
from flexlora_client.errors import BadInput, Refused, Unreachable, passes
from flexlora_shared.versions import disagreement, version, version_headers

ELSEWHERE = 307  # the body lies at `Location`, on another host


class Http:
    """Exchanges with one coordinator under one key."""

    def __init__(
        self,
        url: str,
        key: str | None = None,
        ca_file: Path | None = None,
        renewed: Callable[[], str] | None = None,
        io_timeout: float = IO_TIMEOUT,
    ) -> None:
        """`url` is the coordinator's base address, `ca_file` a PEM file of the authority that signed its certificate.

        `renewed` is asked for the key of now when the coordinator does not know `key` (any more). A line on which no byte
        moves for `io_timeout` seconds counts as cut.

        Raises:
            BadInput: the address or the file cannot be used.
        """
        self.url = _checked(url)
        self._key, self._renewed = key, renewed
        self._ca_file, self._io_timeout = ca_file, io_timeout
        headers = {"User-Agent": f"flexlora-client/{version()}", **version_headers(), **_authorization(key)}
        verify = trust(self.url, ca_file)
        timeout = httpx2.Timeout(io_timeout, connect=CONNECT_TIMEOUT)
        self._client = httpx2.Client(base_url=self.url, headers=headers, timeout=timeout, verify=verify)

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
        """Send and read the whole answer. `path` is a path on the coordinator, with or without a query.

        `held` are seconds for which the coordinator was asked to hold its answer back.

        Raises:
            Refused: the coordinator answered with a problem.
            Unreachable: the exchange failed, or the answer is none of this protocol's.
        """
        timeout = httpx2.Timeout(self._io_timeout, connect=CONNECT_TIMEOUT, read=held + self._io_timeout)
        try:
            response = self._client.request(method, _on_this_host(path), headers=headers, content=body, timeout=timeout)
        except httpx2.RequestError as error:
            raise self._unreachable(error) from error
        self._see_the_protocol(response.headers)
        if not (response.is_success or response.status_code == 304):
            raise self._refusal(response.status_code, response.headers, response.content)
        return Answer(response.status_code, response.headers, response.content)

    @contextmanager
    def stream(self, path: str, headers: Mapping[str, str] | None = None) -> Iterator[Stream]:
        """GET `path`; the body comes in chunks inside the `with` block. A status 307 names a link to it: see `follow`.

        Raises:
            Refused, Unreachable: as `request`; a cut in the middle of the body raises Unreachable from the block.
        """
        sent = {"Accept-Encoding": "identity", **(headers or {})}
        try:
            with self._client.stream("GET", _on_this_host(path), headers=sent) as response:
                self._see_the_protocol(response.headers)
                if not (response.is_success or response.status_code in (304, ELSEWHERE)):
                    raise self._refusal(response.status_code, response.headers, response.read())
                # as they come: a chunk size would hold bytes back, and a cut would lose them
                yield Stream(response.status_code, response.headers, response.iter_raw())
        except httpx2.RequestError as error:
            raise self._unreachable(error) from error

    def follow(self, link: str, begin: int) -> AbstractContextManager[Stream]:
        """GET a link that the coordinator gave, from byte `begin` on, without the key; see `links.follow`."""
        encrypted = self.url.startswith("https:")
        return follow(link, begin, self._ca_file, self._io_timeout, encrypted=encrypted)

    def _has_another_key(self) -> bool:
        """Take over the key of now, where it is another one: whoever tries again then uses it."""
        try:
            key = self._renewed() if self._renewed else self._key
        except BadInput:  # the refusal says more
            return False
        if key == self._key:
            return False
        self._client.headers.update(_authorization(key))
        self._key = key
        return True

    def _see_the_protocol(self, headers: Mapping[str, str]) -> None:
        wrong = disagreement(headers, f"the coordinator at {self.url}", "this program")
        if wrong is not None:
            raise Unreachable(wrong, transient=False)

    def _unreachable(self, error: httpx2.RequestError) -> Unreachable:
        return Unreachable(f"no answer from {self.url}: {reason_of(error)}")

    def _refusal(self, status: int, headers: Mapping[str, str], body: bytes) -> Refused | Unreachable:
        if status == 401 and self._has_another_key():
            return Unreachable(f"{self.url} no longer knows the key, but the home folder holds a new one")
        wait, problem = wait_of(headers), problem_of(status, headers, body)
        if problem is not None:
            return Refused(problem, wait)
        reason = reason_of_status(self.url, status, headers)
        return Unreachable(reason, transient=passes(status), retry_after=wait, status=status)


def _authorization(key: str | None) -> dict[str, str]:
    if key is not None and not (key.isascii() and key.isprintable() and key):
        raise BadInput("the API key holds characters no key has; copy it again")
    return {"Authorization": f"Bearer {key}"} if key else {}


def _checked(url: str) -> str:
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise BadInput(f"{url!r} is no address: {error}") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise BadInput(f"{url!r} is no address of a coordinator; give one like https://flexlora.example.org")
    return str(parsed).rstrip("/")  # with its scheme in lower case


def _on_this_host(path: str) -> str:
    """Refuse addresses that would carry the key elsewhere: some paths come from the coordinator's messages."""
    if not path.startswith("/") or path.startswith("//"):
        raise Unreachable(f"the coordinator named {path!r}, which is no path on itself", transient=False)
    return path
