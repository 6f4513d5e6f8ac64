"""The naive server that the coordinator is compared with: a FastAPI route that reads the body into memory and writes a file."""

import hashlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

STATUS = "/status"


@dataclass(frozen=True)
class Naive:
    """A running naive server."""

    url: str
    pid: int


@contextmanager
def naive(folder: Path) -> Iterator[Naive]:
    """The server in a process of its own, which keeps its files in `folder`."""
    spawn = get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(folder, there), daemon=True)
    process.start()
    try:
        assert process.pid is not None
        yield Naive(here.recv(), process.pid)
    finally:
        process.terminate()
        process.join()


def _serve(folder: Path, there: Connection) -> None:
    """Serve until terminated; tells its address first. Its imports are the child's alone."""
    import uvicorn
    from fastapi import FastAPI, Request, Response
    from fastapi.responses import FileResponse

    app = FastAPI()

    @app.put("/files/{name}", status_code=204)
    async def write(request: Request, name: str, durable: bool = False) -> Response:
        body = await request.body()
        with (folder / name).open("wb") as file:
            if durable:
                hashlib.sha256(body).hexdigest()
            file.write(body)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        return Response(status_code=204)

    @app.get("/files/{name}")
    def read(name: str) -> FileResponse:
        return FileResponse(folder / name)

    @app.get(STATUS)
    def status() -> dict[str, str]:
        return {"state": "RUNNING"}

    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    there.send(f"http://127.0.0.1:{listener.getsockname()[1]}")
    config = uvicorn.Config(app, log_config=None, access_log=False)
    uvicorn.Server(config).run(sockets=[listener])
