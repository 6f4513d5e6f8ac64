"""Sending the bytes of an update by hand: a part, where the upload ends now, a request in progress."""

from tests.support.kit import Participant, Served, part

BIG = {"name": "big", "out_features": 80_000, "in_features": 80_000}  # 8 ranks of it take 5.1 MB, more than one buffer


def put(participant: Participant, upload: str, data: bytes, offset: int, last: bool = False) -> tuple[int, int]:
    """Send one part; the status and where the upload ends now by the answer's header."""
    response = participant.call("PATCH", f"/v1/uploads/{upload}", headers=part(data, offset, last), content=data)
    return response.status_code, int(response.headers.get("upload-offset", -1))


def offset(participant: Participant, upload: str) -> int:
    return int(participant.expect(204, "HEAD", f"/v1/uploads/{upload}").headers["upload-offset"])


def begun(coordinator: Served, upload: str, size: int = 0) -> None:
    """Wait until the request in progress has this many bytes on the disk."""
    path = coordinator.settings.data_dir / "partial" / upload
    while not path.exists() or path.stat().st_size < size:
        coordinator.http.get("/healthz")
