"""Provokes each problem that a caller can bring about, by one or a few real requests; `faults` holds the others."""

import base64
from collections.abc import Callable
from typing import Any

import httpx2

from flexlora_shared.problems import Code
from tests.support.kit import PART, Api, Served, encode, part, part_head, raw_answer, raw_request, spec, tensors

Answer = tuple[int, dict[str, Any]]
Provocation = Callable[[Served], Answer]
PROVOCATIONS: dict[Code, Provocation] = {}
JSON = {"Content-Type": "application/json"}
NOBODY = "0" * 32


def provokes(code: Code) -> Callable[[Provocation], Provocation]:
    def remember(provocation: Provocation) -> Provocation:
        PROVOCATIONS[code] = provocation
        return provocation

    return remember


def answer(response: httpx2.Response) -> Answer:
    assert response.headers["content-type"] == "application/problem+json", response.text
    return response.status_code, response.json()


@provokes(Code.UNAUTHENTICATED)
def _(c: Served) -> Answer:
    for header in ("", "Bearer", "Bearer x", "Basic ???", "Basic " + base64.b64encode(b"a:b").decode(), "Token x"):
        assert c.http.get("/v1/runs", headers={"Authorization": header}).status_code == 401
    assert c.http.get("/v1/runs", headers={b"Authorization": b"Basic \xe9"}).status_code == 401
    response = c.http.get("/v1/runs")
    assert response.headers["www-authenticate"].startswith("Bearer")
    return answer(response)


@provokes(Code.FORBIDDEN)
def _(c: Served) -> Answer:
    c.operator.problem("forbidden", "GET", "/v1/runs/run/task")
    return answer(c.enroll().call("GET", "/v1/clients"))


@provokes(Code.PROTOCOL_MISMATCH)
def _(c: Served) -> Answer:
    for protocol in ("0", "2", "1.1", "", "one"):
        assert c.http.get("/v1/runs", headers={"FlexLoRA-Protocol": protocol}).status_code == 400
    headers = {"FlexLoRA-Protocol": "2", "FlexLoRA-Version": "9.9.9"}
    answered = c.http.post("/v1/clients", headers=headers, content=b"{")
    assert "update this coordinator" in answered.json()["detail"]
    return answer(answered)


@provokes(Code.TOKEN_INVALID)
def _(c: Served) -> Answer:
    token = c.operator.expect(201, "POST", "/v1/enrolment-tokens", json={"expires_in": 60})["token"]
    c.clock.advance(60)
    for bad in (token, token + "x", "flt__", "", "flt_0_0"):
        Api(c.http).problem("token-invalid", "POST", "/v1/clients", json={"token": bad, "name": "x"})
    fresh = c.operator.expect(201, "POST", "/v1/enrolment-tokens", json={})["token"]
    enrollment = {"token": fresh, "name": "x"}
    Api(c.http).expect(201, "POST", "/v1/clients", json=enrollment)
    return answer(Api(c.http).call("POST", "/v1/clients", json=enrollment))


@provokes(Code.NOT_FOUND)
def _(c: Served) -> Answer:
    return answer(c.operator.call("GET", "/v1/nothing"))


@provokes(Code.RUN_NOT_FOUND)
def _(c: Served) -> Answer:
    return answer(c.operator.call("GET", "/v1/runs/none"))


@provokes(Code.ROUND_NOT_FOUND)
def _(c: Served) -> Answer:
    c.run()
    return answer(c.operator.call("GET", "/v1/runs/run/rounds/7"))


@provokes(Code.CLIENT_NOT_FOUND)
def _(c: Served) -> Answer:
    return answer(c.operator.call("DELETE", f"/v1/clients/{NOBODY[:16]}"))


@provokes(Code.UPLOAD_NOT_FOUND)
def _(c: Served) -> Answer:
    return answer(c.enroll().call("PUT", f"/v1/uploads/{NOBODY}/commit"))


@provokes(Code.ADAPTER_NOT_PUBLISHED)
def _(c: Served) -> Answer:
    c.run()
    return answer(c.operator.call("GET", "/v1/runs/run/rounds/1/adapter?rank=2"))


@provokes(Code.METHOD_NOT_ALLOWED)
def _(c: Served) -> Answer:
    return answer(c.operator.call("DELETE", "/v1/runs"))


@provokes(Code.RUN_EXISTS)
def _(c: Served) -> Answer:
    c.run()
    return answer(c.operator.call("POST", "/v1/runs", json=spec()))


@provokes(Code.RUN_STATE)
def _(c: Served) -> Answer:
    c.run()
    return answer(c.operator.call("POST", "/v1/runs/run/start"))


@provokes(Code.RUN_OVER)
def _(c: Served) -> Answer:
    participant, _, _ = c.working()
    c.operator.expect(200, "POST", "/v1/runs/run/cancel")
    participant.problem("run-over", "PUT", "/v1/runs/run/declaration", json={"rank": 2, "examples": 1})
    return answer(participant.call("GET", "/v1/runs/run/task"))


@provokes(Code.NOT_DECLARED)
def _(c: Served) -> Answer:
    c.run()
    return answer(c.enroll().call("GET", "/v1/runs/run/task"))


def announced(c: Served, data: bytes = b"", **changes: Any) -> dict[str, Any]:
    return {"rank": 8, "alpha": 16.0, "examples": 10, "size": len(data) or 9000, "sha256": "0" * 64, **changes}


@provokes(Code.NOT_ASSIGNED)
def _(c: Served) -> Answer:
    c.working()
    return answer(c.enroll("late").call("POST", "/v1/runs/run/rounds/1/uploads", json=announced(c)))


@provokes(Code.RANK_MISMATCH)
def _(c: Served) -> Answer:
    participant, _, data = c.working()
    path = "/v1/runs/run/rounds/1/uploads"
    body = participant.problem("rank-mismatch", "POST", path, json=announced(c, data, rank_pattern={"up_proj": 2}))
    assert body["context"] == {"rank": 8, "rank_pattern": {}}
    return answer(participant.call("POST", path, json=announced(c, data, rank=4)))


@provokes(Code.EXAMPLES_MISMATCH)
def _(c: Served) -> Answer:
    participant, _, data = c.working()
    path = "/v1/runs/run/rounds/1/uploads"
    body = participant.problem("examples-mismatch", "POST", path, json=announced(c, data, examples=10**12))
    assert body["context"] == {"declared": 10}
    return answer(participant.call("POST", path, json=announced(c, data, examples=11)))


@provokes(Code.ROUND_STATE)
def _(c: Served) -> Answer:
    c.run()
    return answer(c.operator.call("POST", "/v1/runs/run/rounds/1/retry", json={}))


@provokes(Code.ROUND_NOT_COLLECTING)
def _(c: Served) -> Answer:
    c.run(min_clients=2)
    participant = c.enroll()
    participant.declare("run", 8)
    return answer(participant.call("POST", "/v1/runs/run/rounds/1/uploads", json=announced(c)))


@provokes(Code.ROUND_CLOSED)
def _(c: Served) -> Answer:
    run = c.run(min_clients=2)
    participant, other = c.enroll(), c.enroll()
    for one in (participant, other):
        one.declare("run", 8)
    task, data = participant.task("run"), encode(tensors(run, 8))
    status = participant.announce(task, data)
    participant.send(status["id"], data)
    other.upload(other.task("run"), data)
    c.clock.advance(100)
    return answer(participant.call("PUT", f"/v1/uploads/{status['id']}/commit"))


@provokes(Code.ALREADY_ACCEPTED)
def _(c: Served) -> Answer:
    participant, task, data = c.working()
    receipt = participant.upload(task, data)
    participant.problem("already-accepted", "DELETE", f"/v1/uploads/{receipt['upload_id']}")
    return answer(participant.call("POST", "/v1/runs/run/rounds/1/uploads", json=announced(c, data)))


@provokes(Code.OFFSET_MISMATCH)
def _(c: Served) -> Answer:
    participant, task, data = c.working()
    upload = participant.announce(task, data)["id"]
    return answer(participant.call("PATCH", f"/v1/uploads/{upload}", headers=PART | {"Upload-Offset": "1"}))


@provokes(Code.UPLOAD_INCOMPLETE)
def _(c: Served) -> Answer:
    participant, task, data = c.working()
    upload = participant.announce(task, data)["id"]
    return answer(participant.call("PUT", f"/v1/uploads/{upload}/commit"))


@provokes(Code.UPLOAD_BUSY)
def _(c: Served) -> Answer:
    participant, task, data = c.working()
    upload = participant.announce(task, data)["id"]
    first = raw_request(c.url, part_head(upload, data), participant.key)
    first.sendall(data[:100])
    while not (c.settings.data_dir / "partial" / upload).exists():  # the first request has begun to write
        participant.expect(204, "HEAD", f"/v1/uploads/{upload}")
    second = participant.call("PATCH", f"/v1/uploads/{upload}", headers=PART | {"Upload-Offset": "0"})
    first.sendall(data[100:])
    assert raw_answer(first)[0] == 204
    return answer(second)


BODIES = [b"", b"{", b"null", b"[]", b"\xff\xfe", b'{"a":' + b"9" * 5000 + b"}", b"[" * 100_000, b'{"\\ud800":1}']
BODIES += [b'{"expires_in":NaN}', b'{"expires_in":1e400}', b'{"expires_in":1,"expires_in":1}', b'{"note":"\\u0000"}']


@provokes(Code.INVALID_REQUEST)
def _(c: Served) -> Answer:
    for body in BODIES:
        c.operator.problem("invalid-request", "POST", "/v1/enrolment-tokens", headers=JSON, content=body)
    c.operator.problem("invalid-request", "POST", "/v1/enrolment-tokens", content=b"{}")  # no media type
    Api(c.http).problem("invalid-request", "POST", "/v1/clients", json={"token": "flt_\0_x", "name": "x"})
    for path in ("/v1/runs/UPPER", "/v1/runs/%00", "/v1/runs/%ff", "/v1/runs/run/rounds/x", "/v1/runs/run/rounds/-1"):
        c.operator.problem("invalid-request", "GET", path)
    return answer(c.operator.call("POST", "/v1/enrolment-tokens", json={"expires_in": True}))


@provokes(Code.INVALID_RUN)
def _(c: Served) -> Answer:
    module = spec()["modules"][0]
    faults: list[dict[str, Any]] = [
        {"ranks": [2, 2]},
        {"ranks": [25]},  # no module has more than 24 rows and columns
        {"modules": [module, module]},
        {"extra": [{"name": "head", "shape": [2]}]},
        {"extra": [{"name": "layers.0.q_proj.lora_A.weight", "shape": [2]}]},
        {"extra": [{"name": "head.weight", "shape": [2]}, {"name": "head.weight", "shape": [2]}]},
        {"min_updates": 2},
        {"min_clients": 2, "clients_per_round": 1},
        {"model": {"id": "x", "task_type": "SEQ_CLS"}},
        {"model": {"id": "x", "labels": ["a"]}},
        {"strategy": "none"},
    ]
    for fault in faults:
        c.operator.problem("invalid-run", "POST", "/v1/runs", json=spec(**fault))
    return answer(c.operator.call("POST", "/v1/runs", json=spec(strategy="fedavg")))


@provokes(Code.RANK_NOT_ALLOWED)
def _(c: Served) -> Answer:
    c.run()
    told = {"rank": 2, "examples": 1, "rank_pattern": {"q_proj": 3}}
    body = c.enroll().problem("rank-not-allowed", "PUT", "/v1/runs/run/declaration", json=told)
    assert body["context"] == {"allowed": [2, 4, 8]}
    return answer(c.operator.call("GET", "/v1/runs/run/rounds/0/adapter?rank=3"))


@provokes(Code.SUPERSEDED)
def _(c: Served) -> Answer:
    c.run()
    participant, told = c.enroll(), {"rank": 2, "examples": 1}
    for instance in ("first", "second"):
        headers = {"FlexLoRA-Instance": instance}
        participant.expect(200, "PUT", "/v1/runs/run/declaration", json=told, headers=headers)
    return answer(participant.call("GET", "/v1/runs/run/task", headers={"FlexLoRA-Instance": "first"}))


@provokes(Code.MODEL_MISMATCH)
def _(c: Served) -> Answer:
    c.run(model={"id": "tiny", "fingerprint": {"weights": "a" * 64, "tokenizer": "b" * 64}})
    return answer(c.enroll().call("PUT", "/v1/runs/run/declaration", json={"rank": 2, "examples": 1}))


@provokes(Code.SIZE_IMPOSSIBLE)
def _(c: Served) -> Answer:
    participant, _, _ = c.working()
    return answer(participant.call("POST", "/v1/runs/run/rounds/1/uploads", json=announced(c, size=100)))


def committed(c: Served, change: Callable[[bytes], bytes], **told: Any) -> Answer:
    participant, task, data = c.working()
    changed = change(data)
    upload = participant.announce(task, changed, **told)["id"]
    participant.send(upload, changed)
    response = participant.call("PUT", f"/v1/uploads/{upload}/commit")
    participant.problem("upload-not-found", "PUT", f"/v1/uploads/{upload}/commit")
    return answer(response)


@provokes(Code.PART_DIGEST_MISMATCH)
def _(c: Served) -> Answer:
    participant, task, data = c.working()
    upload = participant.announce(task, data)["id"]
    path = f"/v1/uploads/{upload}"
    participant.expect(204, "PATCH", path, headers=part(data[:99], 0), content=data[:99])
    response = participant.call("PATCH", path, headers=part(data[99:], 99), content=bytes(len(data) - 99))
    assert response.headers["upload-offset"] == "99"
    participant.send(upload, data, 99)
    participant.commit(upload)
    return answer(response)


@provokes(Code.DIGEST_MISMATCH)
def _(c: Served) -> Answer:
    return committed(c, lambda data: data, sha256="0" * 64)


@provokes(Code.INVALID_HEADER)
def _(c: Served) -> Answer:
    return committed(c, lambda data: b"\xff" * 8 + data[8:])


@provokes(Code.INVALID_TENSOR)
def _(c: Served) -> Answer:
    return committed(c, lambda data: data.replace(b"q_proj", b"k_proj"))


@provokes(Code.TOO_LARGE)
def _(c: Served) -> Answer:
    participant, task, data = c.working()
    upload = participant.announce(task, data)["id"]
    participant.problem("too-large", "PATCH", f"/v1/uploads/{upload}", headers=part(data, 0), content=data + b"x")
    body = b" " * (c.settings.max_json_body + 1)
    return answer(c.operator.call("POST", "/v1/runs", headers=JSON, content=body))


@provokes(Code.UNSUPPORTED_MEDIA_TYPE)
def _(c: Served) -> Answer:
    participant, task, data = c.working()
    upload = participant.announce(task, data)["id"]
    return answer(participant.call("PATCH", f"/v1/uploads/{upload}", headers=JSON | {"Upload-Offset": "0"}))


@provokes(Code.RANGE_NOT_SATISFIABLE)
def _(c: Served) -> Answer:
    c.run()
    path = "/v1/runs/run/rounds/0/adapter?rank=2"
    for bad in ("bytes=-0", "bytes=-00", "bytes=9999999-,-0"):
        c.operator.problem("range-not-satisfiable", "GET", path, headers={"Range": bad})
    response = c.operator.call("GET", path, headers={"Range": "bytes=9999999-"})
    assert response.headers["content-range"].startswith("bytes */")
    return answer(response)
