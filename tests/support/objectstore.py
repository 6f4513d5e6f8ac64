"""A mock S3 server for the tests, on a port of this machine; it can be stopped and started again."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import obstore
from obstore.store import S3Store

KEYS = {"s3_access_key_id": "key", "s3_secret_access_key": "secret"}


@dataclass
class ObjectStore:
    """The server and a bucket of it."""

    port: int
    bucket: str
    server: Any = field(repr=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def settings(self, prefix: str) -> dict[str, str]:
        """What a coordinator is told."""
        return {"blobs_url": f"s3://{self.bucket}/{prefix}", "s3_endpoint": self.url, **KEYS}

    def direct(self, prefix: str) -> S3Store:
        """The same objects past the coordinator."""
        return S3Store(
            self.bucket,
            prefix=prefix,
            config={"endpoint": self.url, "access_key_id": "key", "secret_access_key": "secret", "region": "us-east-1"},
            client_options={"allow_http": True},
        )

    def keys(self, prefix: str) -> list[str]:
        return sorted(found["path"] for found in obstore.list(self.direct(prefix)).collect())

    @contextmanager
    def gone(self) -> Iterator[None]:
        """Nobody answers at the port for the block; what was stored is there again afterwards."""
        self.server.stop()
        try:
            yield
        finally:
            self.server = started(self.port)


def started(port: int) -> Any:
    """A running server."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
    server.start()
    return server


@contextmanager
def object_store() -> Iterator[ObjectStore]:
    """A server with a bucket."""
    import httpx2

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    store = ObjectStore(port, "adapters", started(port))
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                assert httpx2.put(f"{store.url}/{store.bucket}").status_code == 200
                break
            except httpx2.TransportError:
                assert time.monotonic() < deadline, "the object store does not start"
        yield store
    finally:
        store.server.stop()
