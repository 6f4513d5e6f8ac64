"""Uploads over a line that cuts: nothing acknowledged is sent twice, nothing is lost."""

import base64
import hashlib
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from flexlora_client.agent.upload import MAX_DAMAGED_ATTEMPTS, upload
from flexlora_client.coordinator_api.upload_parts import (
    FIRST_PART_BYTES,
    MAX_PART_BYTES,
    MIN_PART_BYTES,
    PartSizer,
    read_part,
)
from flexlora_client.errors import BadInput, Refused, Unreachable
from flexlora_shared.messages.uploads import Receipt, UploadCreate, UploadStatus
from flexlora_shared.problems import Code
from tests.support.connecting import Waits, connect
from tests.support.misbehaving import Asked, Misbehaving, Planned, answer, hang_up, message, misbehaving, problem

DATA = bytes(range(256)) * 8_000  # two parts
HALF = FIRST_PART_BYTES // 2
SHA256 = hashlib.sha256(DATA).hexdigest()
ANNOUNCED = UploadCreate(rank=4, alpha=8.0, examples=10, size=len(DATA), sha256=SHA256)
RECEIPT = Receipt(upload_id="u1", run="run", round=1, counts_in=1, sha256=SHA256, accepted_at="2030-01-01T00:00:00Z")
CREATE, HEAD, PATCH = "POST /v1/runs/run/rounds/1/uploads", "HEAD /v1/uploads/u1", "PATCH /v1/uploads/u1"
COMMIT = "PUT /v1/uploads/u1/commit"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(DATA)
    return path


def created(offset: int = 0, state: str = "OPEN", name: str = "u1") -> Planned:
    fields = {
        "id": name,
        "run": "run",
        "round": 1,
        "state": state,
        "offset": offset,
        "size": len(DATA),
        "sha256": SHA256,
    }
    return message(UploadStatus.model_validate(fields), 201)


def at(offset: int) -> Planned:
    return answer(204, Upload_Offset=str(offset))


def send(server: Misbehaving, file: Path, attempts: int | None = 5) -> Receipt:
    with connect(server.url, Waits(), attempts) as api:
        return upload(api, "run", 1, ANNOUNCED, file, lambda done, total: None)


def parts(server: Misbehaving) -> list[tuple[int, int, str]]:
    """Offset, length and completeness of each part sent."""
    return [
        (int(asked.headers["upload-offset"]), len(asked.body), asked.headers["upload-complete"])
        for asked in server.asked
        if asked.method == "PATCH"
    ]


def test_parts_carry_the_file_and_their_digests(file: Path) -> None:
    with misbehaving(created(), at(FIRST_PART_BYTES), at(len(DATA)), message(RECEIPT)) as server:
        assert send(server, file) == RECEIPT
        assert server.calls == [CREATE, PATCH, PATCH, COMMIT]
        assert UploadCreate.model_validate_json(server.asked[0].body) == ANNOUNCED
        assert parts(server) == [(0, FIRST_PART_BYTES, "?0"), (FIRST_PART_BYTES, len(DATA) - FIRST_PART_BYTES, "?1")]
        assert b"".join(asked.body for asked in server.asked if asked.method == "PATCH") == DATA
        assert server.asked[1].headers["content-type"] == "application/partial-upload"
        for asked in server.asked[1:3]:
            told = base64.b64encode(hashlib.sha256(asked.body).digest()).decode()
            assert asked.headers["content-digest"] == f"sha-256=:{told}:"


def test_a_cut_is_followed_by_a_look_and_only_the_rest_is_sent(file: Path) -> None:
    with misbehaving(created(), hang_up, at(1000), at(1000 + HALF), at(len(DATA)), message(RECEIPT)) as server:
        assert send(server, file) == RECEIPT
        assert server.calls == [CREATE, PATCH, HEAD, PATCH, PATCH, COMMIT]
        assert parts(server)[1] == (1000, HALF, "?0")
        assert server.asked[3].body == DATA[1000 : 1000 + HALF]


def test_the_coordinators_offset_is_followed(file: Path) -> None:
    stray = problem(Code.OFFSET_MISMATCH, offset=5000)
    with misbehaving(created(), stray, at(5000 + FIRST_PART_BYTES), at(len(DATA)), message(RECEIPT)) as server:
        assert send(server, file) == RECEIPT
        assert [offset for offset, _, _ in parts(server)] == [0, 5000, 5000 + FIRST_PART_BYTES]


@pytest.mark.parametrize("told", [-1, 10**12, "7", None])
def test_an_offset_that_cannot_be_is_asked_for_again(file: Path, told: object) -> None:
    with misbehaving(
        created(), problem(Code.OFFSET_MISMATCH, offset=told), at(FIRST_PART_BYTES), at(len(DATA)), message(RECEIPT)
    ) as server:
        assert send(server, file) == RECEIPT
        assert server.calls == [CREATE, PATCH, HEAD, PATCH, COMMIT]


def test_an_upload_found_open_goes_on_from_its_offset(file: Path) -> None:
    with misbehaving(created(offset=FIRST_PART_BYTES), at(len(DATA)), message(RECEIPT)) as server:
        assert send(server, file) == RECEIPT
        assert parts(server) == [(FIRST_PART_BYTES, len(DATA) - FIRST_PART_BYTES, "?1")]


def test_an_upload_found_accepted_needs_only_its_receipt(file: Path) -> None:
    with misbehaving(created(state="ACCEPTED"), message(RECEIPT)) as server:
        assert send(server, file) == RECEIPT
        assert server.calls == [CREATE, COMMIT]


def test_a_lost_receipt_is_asked_for_again(file: Path) -> None:
    with misbehaving(
        created(offset=FIRST_PART_BYTES), at(len(DATA)), hang_up, at(len(DATA)), message(RECEIPT)
    ) as server:
        assert send(server, file) == RECEIPT
        assert server.calls == [CREATE, PATCH, COMMIT, HEAD, COMMIT]


def test_a_commit_that_misses_bytes_sends_them(file: Path) -> None:
    missing = problem(Code.UPLOAD_INCOMPLETE, offset=FIRST_PART_BYTES)
    with misbehaving(
        created(offset=FIRST_PART_BYTES), at(len(DATA)), missing, at(FIRST_PART_BYTES), at(len(DATA)), message(RECEIPT)
    ) as server:
        assert send(server, file) == RECEIPT
        assert server.calls == [CREATE, PATCH, COMMIT, HEAD, PATCH, COMMIT]


def test_an_upload_that_is_gone_is_created_anew(file: Path) -> None:
    with misbehaving(
        created(),
        problem(Code.UPLOAD_NOT_FOUND),
        created(offset=FIRST_PART_BYTES, name="u2"),
        at(len(DATA)),
        message(RECEIPT),
    ) as server:
        assert send(server, file) == RECEIPT
        assert server.calls[-2:] == ["PATCH /v1/uploads/u2", "PUT /v1/uploads/u2/commit"]


def test_a_busy_upload_is_waited_for(file: Path) -> None:
    waits = Waits()
    with misbehaving(
        created(offset=FIRST_PART_BYTES),
        problem(Code.UPLOAD_BUSY, retry_after=2),
        at(FIRST_PART_BYTES),
        at(len(DATA)),
        message(RECEIPT),
    ) as server:
        with connect(server.url, waits, None) as api:
            assert upload(api, "run", 1, ANNOUNCED, file, lambda done, total: None) == RECEIPT
        assert waits.slept == [3.0]


@pytest.mark.parametrize(
    "code", [Code.ROUND_CLOSED, Code.NOT_ASSIGNED, Code.INVALID_TENSOR, Code.RUN_OVER, Code.ALREADY_ACCEPTED]
)
def test_what_the_coordinator_will_not_take_ends_at_once(file: Path, code: Code) -> None:
    with misbehaving(created(offset=FIRST_PART_BYTES), at(len(DATA)), problem(code)) as server:
        with pytest.raises(Refused) as caught:
            send(server, file, attempts=None)
        assert caught.value.code is code
        assert server.calls == [CREATE, PATCH, COMMIT]


def test_bytes_damaged_on_the_way_are_sent_again_from_the_start(file: Path) -> None:
    damaged = problem(Code.DIGEST_MISMATCH)
    plan = [
        created(offset=FIRST_PART_BYTES),
        at(len(DATA)),
        damaged,
        created(),
        at(FIRST_PART_BYTES),
        at(len(DATA)),
        message(RECEIPT),
    ]
    with misbehaving(*plan) as server:
        assert send(server, file) == RECEIPT
        assert [offset for offset, _, _ in parts(server)] == [FIRST_PART_BYTES, 0, FIRST_PART_BYTES]


def test_even_a_patient_agent_gives_up_on_a_line_that_always_damages(file: Path) -> None:
    round_trip = [created(offset=FIRST_PART_BYTES), at(len(DATA)), problem(Code.DIGEST_MISMATCH)]
    with misbehaving(*round_trip * MAX_DAMAGED_ATTEMPTS) as server:
        with pytest.raises(Refused):
            send(server, file, attempts=None)
        assert server.plan == []


def test_a_file_that_changed_meanwhile_is_not_sent_again(file: Path) -> None:
    def change(handler: BaseHTTPRequestHandler, asked: Asked) -> None:
        file.write_bytes(b"!" + DATA[1:])
        problem(Code.DIGEST_MISMATCH)(handler, asked)

    ended = pytest.raises(BadInput, match="changed after it was announced")
    with misbehaving(created(offset=FIRST_PART_BYTES), at(len(DATA)), change) as server, ended:
        send(server, file)


def test_a_coordinator_that_stays_away_ends_a_command(file: Path) -> None:
    with misbehaving(created(), *[hang_up] * 5) as server, pytest.raises(Unreachable):
        send(server, file, attempts=5)


def test_an_answer_without_an_offset_is_no_coordinator(file: Path) -> None:
    with misbehaving(created(), answer(204)) as server, pytest.raises(Unreachable, match="Upload-Offset"):
        send(server, file, attempts=None)


def test_a_refused_look_asks_again_where_the_reason_can_be_told(file: Path) -> None:
    gone = problem(Code.UPLOAD_NOT_FOUND)
    with misbehaving(
        created(), hang_up, gone, created(FIRST_PART_BYTES, name="u2"), at(len(DATA)), message(RECEIPT)
    ) as server:
        assert send(server, file) == RECEIPT
        assert server.calls[2:] == [HEAD, CREATE, "PATCH /v1/uploads/u2", "PUT /v1/uploads/u2/commit"]
    refused = problem(Code.UNAUTHENTICATED)
    with misbehaving(created(), hang_up, refused, refused) as server, pytest.raises(Refused) as caught:
        send(server, file)
    assert caught.value.code is Code.UNAUTHENTICATED


def test_what_was_kept_of_a_cut_part_is_progress(file: Path) -> None:
    waits = Waits()
    cuts = [planned for offset in (1000, 2000, 3000, 4000) for planned in (hang_up, at(offset))]
    with misbehaving(created(), *cuts, at(len(DATA)), message(RECEIPT)) as server, connect(server.url, waits, 3) as api:
        assert upload(api, "run", 1, ANNOUNCED, file, lambda done, total: None) == RECEIPT
    assert waits.slept == [1.0, 1.0, 1.0, 1.0]


def test_parts_grow_while_the_line_carries_them_and_shrink_when_it_cuts() -> None:
    length, seen = PartSizer(), []
    for _ in range(4):
        seen.append(length.bytes)
        length.sent(seconds=1.0)
    assert seen == [FIRST_PART_BYTES, 2 * FIRST_PART_BYTES, 4 * FIRST_PART_BYTES, MAX_PART_BYTES]
    assert length.bytes == MAX_PART_BYTES == 8 << 20
    length.sent(seconds=160.0)  # 50 KB/s
    assert length.bytes == MAX_PART_BYTES // 2
    length.sent(seconds=20.0)
    assert length.bytes == MAX_PART_BYTES // 2
    for _ in range(9):
        length.cut()
    assert length.bytes == MIN_PART_BYTES


def test_a_proxy_that_takes_less_gets_shorter_parts_from_then_on(file: Path) -> None:
    large = answer(413, b"<html>Request Entity Too Large</html>", Content_Type="text/html")
    ends = [at(end) for end in range(MIN_PART_BYTES, len(DATA), MIN_PART_BYTES)]
    with misbehaving(created(), large, at(0), large, at(0), *ends, at(len(DATA)), message(RECEIPT)) as server:
        assert send(server, file) == RECEIPT
        assert [length for _, length, _ in parts(server)][:6] == [
            FIRST_PART_BYTES,
            FIRST_PART_BYTES // 2,
            *[MIN_PART_BYTES] * 4,
        ]
        assert server.plan == []


def test_a_proxy_that_takes_nothing_of_use_ends_it(file: Path) -> None:
    large = answer(413)
    looks = [planned for _ in range(2) for planned in (large, at(0))]
    with misbehaving(created(), *looks, large) as server:
        with pytest.raises(Unreachable, match="413"):
            send(server, file, attempts=None)
        assert server.plan == []


def test_a_part_that_ends_before_its_length_is_not_sent(file: Path) -> None:
    with pytest.raises(BadInput, match="became shorter"):
        read_part(file, len(DATA) - 10, 11)


def test_a_part_damaged_on_the_way_is_sent_again_alone(file: Path) -> None:
    damaged = problem(Code.PART_DIGEST_MISMATCH)
    plan = [created(), at(FIRST_PART_BYTES), damaged, at(FIRST_PART_BYTES), at(len(DATA)), message(RECEIPT)]
    with misbehaving(*plan) as server:
        assert send(server, file) == RECEIPT
        assert server.calls == [CREATE, PATCH, PATCH, HEAD, PATCH, COMMIT]
        assert [offset for offset, _, _ in parts(server)] == [0, FIRST_PART_BYTES, FIRST_PART_BYTES]


def test_even_a_patient_agent_gives_up_on_a_part_that_always_arrives_damaged(file: Path) -> None:
    damaged = [problem(Code.PART_DIGEST_MISMATCH), at(0)] * MAX_DAMAGED_ATTEMPTS
    with misbehaving(created(), *damaged[:-1]) as server:
        with pytest.raises(Refused) as caught:
            send(server, file, attempts=None)
        assert caught.value.code is Code.PART_DIGEST_MISMATCH
        assert server.plan == []


@pytest.mark.parametrize("code", [Code.STORAGE_FULL, Code.UNAVAILABLE])
def test_a_coordinator_without_storage_or_database_is_waited_for(file: Path, code: Code) -> None:
    waits, away = Waits(), problem(code, retry_after=30)
    gone = answer(503, Retry_After="30")  # a refused HEAD has no body
    plan = [
        away,
        created(),
        away,
        gone,
        at(0),
        at(FIRST_PART_BYTES),
        at(len(DATA)),
        *[away, at(len(DATA))] * 20,
        message(RECEIPT),
    ]
    with misbehaving(*plan) as server, connect(server.url, waits, None) as api:
        assert upload(api, "run", 1, ANNOUNCED, file, lambda done, total: None) == RECEIPT
    assert min(waits.slept) > 30
    assert sum(waits.slept) > 600
    assert f"({code})" in str(waits.reasons[0])
