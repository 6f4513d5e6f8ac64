"""One HTTP exchange with the coordinator: address, key, time-outs, TLS, and refusals as typed errors.

The only file that imports the HTTP library. Nothing is tried twice here; `retry` does that around it.
"""

import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Self

import httpx2
from pydantic import ValidationError

from flexlora_client.errors import TRANSIENT_STATUSES, BadInput, Refused, Unreachable
from flexlora_shared.problems import PROBLEM_MEDIA_TYPE, Problem

CONNECT_TIMEOUT = 10.0  # seconds
IO_TIMEOUT = 60.0  # seconds without one byte, reading or writing

Body = bytes | Iterator[bytes]


@dataclass(frozen=True)
class Answer:
    """An answer that is not a refusal; header names are lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Stream:
    """An answer whose body is still to come."""

    status: int
    headers: Mapping[str, str]
    chunks: Iterator[bytes]


class Http:
    """Exchanges with one coordinator under one key."""

    def __init__(
        self,
        url: str,
        key: str | None = None,
        ca_file: Path | None = None,
        renewed: Callable[[], str] | None = None,
    ) -> None:
        """`url` is the coordinator's base address, `ca_file` a PEM file of the authority that signed its certificate.

        `renewed` is asked for the key of now when the coordinator does not know `key` (any more).

        Raises:
            BadInput: the address or the file cannot be used.
        """
        self.url = _checked(url)
        self._key, self._renewed = key, renewed
        headers = _authorization(key)
        timeout = httpx2.Timeout(IO_TIMEOUT, connect=CONNECT_TIMEOUT)
        trust = _trust(self.url, ca_file)
        self._client = httpx2.Client(base_url=self.url, headers=headers, timeout=timeout, verify=trust)

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
        read_timeout: float = IO_TIMEOUT,
    ) -> Answer:
        """Send and read the whole answer. `path` is a path on the coordinator, with or without a query.

        Raises:
            Refused: the coordinator answered with a problem.
            Unreachable: the exchange failed, or the answer is none of the protocol's.
        """
        timeout = httpx2.Timeout(IO_TIMEOUT, connect=CONNECT_TIMEOUT, read=read_timeout)
        try:
            response = self._client.request(method, _on_this_host(path), headers=headers, content=body, timeout=timeout)
        except httpx2.RequestError as error:
            raise self._unreachable(error) from error
        if not (response.is_success or response.status_code == 304):
            raise self._refusal(response.status_code, response.headers, response.content)
        return Answer(response.status_code, response.headers, response.content)

    @contextmanager
    def stream(self, path: str, headers: Mapping[str, str] | None = None) -> Iterator[Stream]:
        """GET `path`; the body comes in chunks inside the `with` block.

        Raises:
            Refused, Unreachable: as `request`; a cut in the middle of the body raises Unreachable from the block.
        """
        sent = {"Accept-Encoding": "identity", **(headers or {})}
        try:
            with self._client.stream("GET", _on_this_host(path), headers=sent) as response:
                if not (response.is_success or response.status_code == 304):
                    raise self._refusal(response.status_code, response.headers, response.read())
                # as they come: a chunk size would hold bytes back, and a cut would lose them
                yield Stream(response.status_code, response.headers, response.iter_raw())
        except httpx2.RequestError as error:
            raise self._unreachable(error) from error

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

    def _unreachable(self, error: httpx2.RequestError) -> Unreachable:
        reason = str(error).rstrip(".") or type(error).__name__
        certificate = isinstance(error.__cause__, ssl.SSLError) or "CERTIFICATE_VERIFY_FAILED" in reason
        advice = "; check the certificate, or name its authority with --ca-file" if certificate else ""
        return Unreachable(f"no answer from {self.url}: {reason}{advice}")

    def _refusal(self, status: int, headers: Mapping[str, str], body: bytes) -> Refused | Unreachable:
        if status == 401 and self._has_another_key():
            return Unreachable(f"{self.url} no longer knows the key, but the home folder holds a new one")
        wait = _retry_after(headers.get("retry-after"))
        if headers.get("content-type", "").split(";")[0] == PROBLEM_MEDIA_TYPE:
            try:
                return Refused(Problem.model_validate_json(body), wait)
            except ValidationError:
                pass  # a proxy's problem, or a code this version does not know
        reason = f"{self.url} answered {status}, which is no answer of a FlexLoRA coordinator of this version"
        if "location" in headers:
            reason = f"{self.url} answered {status} and points to {headers['location']}; use that address"
        return Unreachable(reason, transient=status in TRANSIENT_STATUSES, retry_after=wait)


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


def _trust(url: str, ca_file: Path | None) -> ssl.SSLContext | bool:
    """Whose certificates are believed: `ca_file`'s, else the system's (True)."""
    if ca_file is None:
        # loading the system's takes longer than a call; without TLS an empty context, which believes nobody, does
        return True if url.startswith("https:") else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise BadInput(f"cannot read certificates from {ca_file}: {error}") from None


def _on_this_host(path: str) -> str:
    """Refuse addresses that would carry the key elsewhere: some paths come from the coordinator's messages."""
    if not path.startswith("/") or path.startswith("//"):
        raise Unreachable(f"the coordinator named {path!r}, which is no path on itself", transient=False)
    return path


def _retry_after(value: str | None) -> float | None:
    """Seconds to wait, from either form of the header (RFC 9110, 10.2.3)."""
    if value is None:
        return None
    try:
        if value.strip().isdecimal():
            return float(value)
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None
