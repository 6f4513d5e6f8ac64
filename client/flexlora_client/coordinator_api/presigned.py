"""Downloads from a presigned link that the coordinator gave; the other host never gets the API key.

The link expires, and its query authorizes whoever holds it: messages of this file show its host only.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import httpx2

from flexlora_client.coordinator_api.http_messages import CONNECT_TIMEOUT_S, Stream, describe_error, parse_retry_after
from flexlora_client.coordinator_api.rate import RateLimit
from flexlora_client.coordinator_api.tls import Tls, verification_fault
from flexlora_client.errors import Unreachable

RANGE_NOT_SATISFIABLE = 416  # passed on: the caller knows which bytes it has


@contextmanager
def stream_presigned(
    link: str, begin: int, tls: Tls, io_timeout: float, rate: RateLimit, *, encrypted: bool
) -> Iterator[Stream]:
    """GET `link` from byte `begin` on; the body comes in chunks inside the `with` block.

    encrypted: whether the link must use https, as the coordinator's own address does.

    Raises:
        Unreachable: the host does not answer, refuses the link, or the connection is lost; ask the coordinator for
            another link.
    """
    url = _check_link(link, encrypted)
    host = f"{url.scheme}://{url.netloc.decode()}"
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={begin}-"} if begin else {})
    timeout = httpx2.Timeout(io_timeout, connect=CONNECT_TIMEOUT_S)
    try:
        with (
            httpx2.Client(timeout=timeout, verify=tls.verification(link, with_system_authorities=True)) as client,
            client.stream("GET", url, headers=headers) as response,
        ):
            if not (response.is_success or response.status_code == RANGE_NOT_SATISFIABLE):
                wait = parse_retry_after(response.headers)
                raise Unreachable(f"{host} answered {response.status_code} to the coordinator's link", retry_after=wait)
            yield Stream(response.status_code, response.headers, rate.chunks(response.iter_raw()))
    except httpx2.RequestError as error:
        fault = verification_fault(error)
        if fault is not None:
            raise Unreachable(f"cannot talk to {host}, where the adapter lies: {fault}", transient=False) from error
        raise Unreachable(f"no answer from {host}: {describe_error(error)}") from error


def _check_link(link: str, encrypted: bool) -> httpx2.URL:
    try:
        url = httpx2.URL(link)
    except httpx2.InvalidURL:
        raise Unreachable("the coordinator's link is no address", transient=False) from None
    if url.scheme not in ("http", "https") or not url.host or url.userinfo:
        raise Unreachable(
            f"the coordinator's link leads to {url.scheme}://{url.host}, not to http or https", transient=False
        )
    if encrypted and url.scheme != "https":  # others could read the adapter and the link
        raise Unreachable(
            f"the coordinator's link leads to http://{url.host}, though it is itself reached by https; its operator must "
            "give the storage's public address with https",
            transient=False,
        )
    return url
