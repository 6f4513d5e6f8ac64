"""The protocol's calls, one typed method each: messages in, messages out.

Calls that are safe to repeat are retried by the RetryPolicy. Calls that create a secret are sent once: after a lost
response nobody knows whether the secret was created. Upload parts are sent once, too: the upload asks for its offset
before it continues.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self
from urllib.parse import quote, urlencode

from flexlora_client.coordinator_api.answers import M, parse_message
from flexlora_client.coordinator_api.http import Http
from flexlora_client.coordinator_api.http_messages import Answer, Body, parse_retry_after
from flexlora_client.coordinator_api.retry import RetryPolicy
from flexlora_client.coordinator_api.upload_parts import Part
from flexlora_client.errors import Unreachable
from flexlora_shared.messages.base import Message
from flexlora_shared.messages.clients import (
    ClientList,
    Credentials,
    Declaration,
    Declared,
    Enrollment,
    Token,
    TokenRequest,
)
from flexlora_shared.messages.records import RoundRecord
from flexlora_shared.messages.runs import RunDetail, RunList, RunSpec, RunStatus
from flexlora_shared.messages.status import RetryRequest, RollbackRequest, RoundDetail, RoundList, RoundSummary
from flexlora_shared.messages.tasks import Failure, Task
from flexlora_shared.messages.uploads import PART_MEDIA_TYPE, Evaluation, Receipt, UploadCreate, UploadStatus
from flexlora_shared.ranks import longest_first

Action = Literal["start", "pause", "resume", "cancel"]
JSON_HEADERS = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class NoTask:
    """There is no task now; ask again after `retry_after` seconds."""

    retry_after: float


class Api:
    """The calls of one coordinator."""

    def __init__(self, http: Http, retry: RetryPolicy) -> None:
        self.http = http
        self.retry = retry

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Drop the connections."""
        self.http.__exit__()

    # runs and rounds

    def create_run(self, spec: RunSpec) -> RunDetail:
        """Define a run, in state DRAFT. Filters that the definition leaves out, the coordinator fills in; `[]` means none."""
        left_out = frozenset({"robust"} - spec.model_fields_set)
        return parse_message(RunDetail, self._send("POST", "/v1/runs", spec, left_out))

    def runs(self) -> RunList:
        """Every run, newest first."""
        return self._call(RunList, "GET", "/v1/runs")

    def run(self, run: str) -> RunDetail:
        """A run's definition and status."""
        return self._call(RunDetail, "GET", f"{_run(run)}")

    def change_run(self, run: str, action: Action) -> RunStatus:
        """Start, pause, resume or cancel."""
        return self._call(RunStatus, "POST", f"{_run(run)}/{action}")

    def rounds(self, run: str) -> RoundList:
        """A run's rounds, newest first."""
        return self._call(RoundList, "GET", f"{_run(run)}/rounds")

    def round(self, run: str, number: int) -> RoundDetail:
        """One round with its modules."""
        return self._call(RoundDetail, "GET", f"{_run(run)}/rounds/{number}")

    def record(self, run: str, number: int) -> bytes:
        """The record of a published round, JSON as it came: it may have fields that this version does not know."""
        answer = self.retry.call(lambda: self.http.request("GET", f"{_run(run)}/rounds/{number}/record"))
        parse_message(RoundRecord, answer)
        return answer.body

    def retry_round(self, run: str, number: int, exclude: tuple[str, ...]) -> RoundSummary:
        """Aggregate a failed round again, without these uploads."""
        return self._call(RoundSummary, "POST", f"{_run(run)}/rounds/{number}/retry", RetryRequest(exclude=exclude))

    def roll_back(self, run: str, to: int) -> RunStatus:
        """Publish an earlier round's adapter again as a new round; not retried, because each call that arrives does so."""
        advice = "`flexlora-client rounds` shows whether the run was rolled back"
        return self._once(RunStatus, f"{_run(run)}/rollback", RollbackRequest(to=to), advice)

    # taking part

    def declare(self, run: str, declaration: Declaration) -> Declared:
        """Declare this participant's rank and number of examples; the answer says whether it replaces another agent."""
        return self._call(Declared, "PUT", f"{_run(run)}/declaration", declaration)

    def task(self, run: str, wait: int) -> Task | NoTask:
        """The next task, by long polling for up to `wait` seconds (0 to 60)."""
        path = f"{_run(run)}/task?wait={wait}"
        answer = self.retry.call(lambda: self.http.request("GET", path, held=wait))
        if answer.status == 204:
            retry_after = parse_retry_after(answer.headers)
            return NoTask(1.0 if retry_after is None else retry_after)
        return parse_message(Task, answer)

    def report_failure(self, run: str, number: int, failure: Failure) -> None:
        """Report that this participant cannot finish its task; a declaration takes it back."""
        self._send("PUT", f"{_run(run)}/rounds/{number}/failure", failure)

    def adapter_config(self, path: str) -> bytes:
        """A slice's PEFT `adapter_config.json`."""
        return self.retry.call(lambda: self.http.request("GET", path)).body

    def evaluate(self, run: str, number: int, evaluation: Evaluation) -> None:
        """Report metrics of the slice that round `number` published."""
        self._send("POST", f"{_run(run)}/rounds/{number}/evaluations", evaluation)

    # uploads

    def create_upload(self, run: str, number: int, upload: UploadCreate) -> UploadStatus:
        """Announce an update; the same announcement again returns the open upload."""
        return self._call(UploadStatus, "POST", f"{_run(run)}/rounds/{number}/uploads", upload)

    def upload_offset(self, upload: str) -> int:
        """Bytes of the upload that have arrived; not retried."""
        return _offset(self.http.request("HEAD", f"/v1/uploads/{quote(upload, safe='')}"))

    def send_part(self, upload: str, part: Part, body: Body, *, last: bool) -> int:
        """Send a part, whose bytes are `body`; not retried. Returns the confirmed offset."""
        headers = {
            "Content-Type": PART_MEDIA_TYPE,
            "Content-Length": str(len(part.content)),
            "Content-Digest": part.digest,
            "Upload-Offset": str(part.offset),
            "Upload-Complete": "?1" if last else "?0",
        }
        return _offset(self.http.request("PATCH", f"/v1/uploads/{quote(upload, safe='')}", headers=headers, body=body))

    def commit(self, upload: str) -> Receipt:
        """Commit the upload, so that the update counts; not retried."""
        return parse_message(Receipt, self.http.request("PUT", f"/v1/uploads/{quote(upload, safe='')}/commit"))

    # keys and clients

    def create_token(self, request: TokenRequest) -> Token:
        """Create a one-time enrollment token; not retried, because each call that arrives creates one."""
        advice = "a token may have been made that nobody holds, it expires by itself; ask for another one"
        return self._once(Token, "/v1/enrolment-tokens", request, advice)

    def enroll(self, enrollment: Enrollment) -> Credentials:
        """Redeem a token; not retried, because the first call that arrives uses it up."""
        advice = (
            "enroll again; if the token is refused as used, ask the operator to revoke this client and for a new token"
        )
        return self._once(Credentials, "/v1/clients", enrollment, advice)

    def clients(self) -> ClientList:
        """Every client ever enrolled."""
        return self._call(ClientList, "GET", "/v1/clients")

    def revoke(self, client_id: str) -> None:
        """End a client's key."""
        self._send("DELETE", f"/v1/clients/{quote(client_id, safe='')}", None)

    def rotate_key(self) -> Credentials:
        """Create a new key for this client; not retried, because each call that arrives creates one."""
        return parse_message(Credentials, self.http.request("POST", "/v1/clients/me/keys"))

    def _call(self, kind: type[M], method: str, path: str, message: Message | None = None) -> M:
        return parse_message(kind, self._send(method, path, message))

    def _once(self, kind: type[M], path: str, message: Message, advice: str) -> M:
        try:
            return parse_message(
                kind, self.http.request("POST", path, headers=JSON_HEADERS, body=message.model_dump_json().encode())
            )
        except Unreachable as error:
            raise Unreachable(f"{error}; {advice}", transient=False) from error

    def _send(self, method: str, path: str, message: Message | None, left_out: frozenset[str] = frozenset()) -> Answer:
        body = message.model_dump_json(exclude=set(left_out)).encode() if message is not None else None
        headers = JSON_HEADERS if message is not None else None
        return self.retry.call(lambda: self.http.request(method, path, headers=headers, body=body))


def adapter_path(run: str, number: int, rank: int, rank_pattern: Mapping[str, int], *, config: bool = False) -> str:
    """The path of a published round's slice, or with `config` of its `adapter_config.json`."""
    query = {"rank": str(rank)}
    if rank_pattern:
        query["pattern"] = json.dumps(longest_first(rank_pattern))
    return f"{_run(run)}/rounds/{number}/adapter{'-config' if config else ''}?{urlencode(query)}"


def _run(run: str) -> str:
    return f"/v1/runs/{quote(run, safe='')}"


def _offset(answer: Answer) -> int:
    value = answer.headers.get("upload-offset", "")
    if not value.isdecimal():
        raise Unreachable(f"the coordinator sent no usable Upload-Offset ({value!r})", transient=False)
    return int(value)
